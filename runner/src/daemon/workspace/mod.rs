//! Opens and shares workspaces through a process that can be killed (see [`host::share`]), and
//! takes them out of their machines.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use garret_api::{Code, Problem};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::keyed_semaphore::{KeyedSemaphore, Permit};
use crate::host::share::{self, ExistingMount, ShareSpec};
use crate::host::{self, MachinePaths};

/// The most folders of one developer that are being opened at a time, including calls that hang.
const CONCURRENT_MAX: usize = 4;
/// The same for all developers together: each call is a root process. The number is large because a server that is down
/// makes a developer's whole share hang, while other developers have workspaces elsewhere.
const CONCURRENT_TOTAL_MAX: usize = 256;

/// The process's answer; `None`: none within its deadline.
type Answer = io::Result<Option<Result<ExistingMount, Problem>>>;

/// How long a killed process may take to end. One that takes longer hangs in a call to the folder's file system, and
/// makes no other call after it, so it mounts nothing more.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the VMM may take to close its last file after the guest has released a workspace.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause between two scans.
const SCAN_PAUSE: Duration = Duration::from_millis(100);

/// Whether a machine still uses a workspace that was taken out of it.
#[derive(Debug)]
pub(super) enum Revoked {
    Unused,
    /// The number of open files.
    Held(usize),
    /// The VMM's mounts or descriptors cannot be read.
    Unknown(io::Error),
}

/// The folders that are being opened, mounted and unmounted.
#[derive(Debug)]
pub(super) struct Workspaces {
    /// The program with the subcommand `share`.
    program: PathBuf,
    deadline: Duration,
    /// Permits of each uid.
    permits: KeyedSemaphore<u32>,
    permits_of_all: Arc<Semaphore>,
    /// One permit for each mount point: a late mount would undo an unmount, or lie on top of another mount.
    mounts: KeyedSemaphore<PathBuf>,
    /// Permits for reading the open files of a VMM, which may be many, per uid.
    scans: KeyedSemaphore<u32>,
}

/// The permits that a process holds while it opens a folder.
#[derive(Debug)]
struct HeldPermits {
    /// Held until the process has ended.
    permits: (Permit, Permit),
    /// Held until the process cannot mount any more.
    mount: Option<Permit>,
}

impl Default for Workspaces {
    fn default() -> Self {
        // The binary that runs, even if an upgrade has replaced the file.
        Self::new("/proc/self/exe".into(), share::DEADLINE)
    }
}

impl Workspaces {
    fn new(program: PathBuf, deadline: Duration) -> Self {
        let permits_of_all = Arc::new(Semaphore::new(CONCURRENT_TOTAL_MAX));
        let (permits, scans) = (KeyedSemaphore::new(CONCURRENT_MAX), KeyedSemaphore::new(CONCURRENT_MAX));
        Self { program, deadline, permits, permits_of_all, mounts: KeyedSemaphore::new(1), scans }
    }

    /// Carries out `spec` in a process of its own.
    ///
    /// # Errors
    /// One line for the developer: what is wrong with the folder, or that its file system does not answer.
    pub(super) async fn share(&self, spec: ShareSpec) -> Result<ExistingMount, Problem> {
        let folder = spec.folder.display().to_string();
        let late = || {
            let seconds = self.deadline.as_secs();
            Problem::new(
                Code::Unavailable,
                format!("workspace {folder}: its file system did not answer within {seconds} s"),
            )
        };
        let Ok(Some(held)) = timeout(self.deadline, self.acquire_permits(&spec)).await else { return Err(late()) };
        match self.carry_out(spec, held).await {
            Ok(Some(answer)) => answer,
            Ok(None) => Err(late()),
            Err(error) => Err(Problem::new(Code::Internal, format!("workspace {folder}: {error}"))),
        }
    }

    async fn acquire_permits(&self, spec: &ShareSpec) -> Option<HeldPermits> {
        // The developer's own permit first, so that a request that waits for it holds no shared permit.
        let permit = self.permits.acquire(spec.developer.uid).await?;
        let permits = (permit, self.permits_of_all.clone().acquire_owned().await.ok()?);
        // The mount point comes last: a removal waits only for the process that holds it.
        let mount = match (&spec.mount, &spec.mount_point) {
            (Some(_), Some(mount_point)) => Some(self.mounts.acquire(mount_point.clone()).await?),
            _ => None,
        };
        Some(HeldPermits { permits, mount })
    }

    /// The process is killed when its caller is dropped. A process that hangs in the kernel holds its permits until it
    /// has ended.
    async fn carry_out(&self, spec: ShareSpec, held: HeldPermits) -> Answer {
        #[cfg(test)]
        if self.program == Path::new("/proc/self/exe") {
            // Unit tests have no `garret` to run.
            let share = move || (share::share(&spec), held);
            return Ok(Some(tokio::task::spawn_blocking(share).await?.0));
        }
        let (mut answered, answer) = oneshot::channel();
        let mut child = spawn(&self.program, &spec)?;
        let deadline = self.deadline;
        tokio::spawn(async move {
            let HeldPermits { permits, mount } = held;
            let result = tokio::select! {
                result = timeout(deadline, read_answer(&mut child)) => Some(result),
                () = answered.closed() => None,
            };
            if !matches!(result, Some(Ok(_))) {
                // It may have ended already.
                let _ = child.start_kill();
            }
            // It may hang even then.
            let _ = timeout(KILL_TIMEOUT, child.wait()).await;
            drop(mount);
            if let Some(result) = result {
                // A caller that was dropped meanwhile needs no answer.
                let _ = answered.send(result);
            }
            let _ = child.wait().await;
            drop(permits);
        });
        match answer.await.map_err(io::Error::other)? {
            Ok(answer) => answer.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Takes the environment's workspace out of a machine of this uid at once. Checks whether its VMM, which has this
    /// process id, closes its files.
    ///
    /// # Errors
    /// The workspace cannot be unmounted.
    pub(super) async fn revoke(
        &self,
        uid: u32,
        paths: &MachinePaths,
        environment: &str,
        vmm: Option<u32>,
    ) -> anyhow::Result<Revoked> {
        let mount = self.mounts.acquire(paths.workspace(environment)).await;
        let (paths, environment) = (paths.clone(), environment.to_owned());
        let revoke = move || (host::revoke_workspace(&paths, &environment, vmm), mount);
        let users = match tokio::task::spawn_blocking(revoke).await?.0? {
            Ok(users) => users,
            Err(error) => return Ok(Revoked::Unknown(error)),
        };
        let until = Instant::now() + RELEASE_TIMEOUT;
        let _permit = self.scans.acquire(uid).await;
        let users = Arc::new(users);
        loop {
            let scanned = users.clone();
            let open = tokio::task::spawn_blocking(move || scanned.open_files()).await?;
            let late = Instant::now() > until;
            match open {
                Ok(0) => return Ok(Revoked::Unused),
                Ok(open) if late => return Ok(Revoked::Held(open)),
                Err(error) if late => return Ok(Revoked::Unknown(error)),
                _ => sleep(SCAN_PAUSE).await,
            }
        }
    }
}

fn spawn(program: &Path, spec: &ShareSpec) -> io::Result<Child> {
    Command::new(program)
        .arg(share::SUBCOMMAND)
        .arg(std::process::id().to_string())
        .arg(serde_json::to_string(spec)?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
}

async fn read_answer(child: &mut Child) -> io::Result<Result<ExistingMount, Problem>> {
    let mut printed = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_end(&mut printed).await?;
    }
    let status = child.wait().await?;
    serde_json::from_slice(&printed).map_err(|_| io::Error::other(format!("the check ended with {status}")))
}

#[cfg(test)]
mod tests;
