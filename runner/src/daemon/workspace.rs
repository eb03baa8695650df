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
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::host::share::{Identity, MountRequest};
    use garret_testing::program;

    const UID: u32 = 7;

    fn spec() -> ShareSpec {
        let developer = Identity { uid: UID, gid: UID, groups: Vec::new() };
        ShareSpec { folder: "/w".into(), developer, mount_point: None, mount: None }
    }

    /// Workspaces whose program is this shell script. It runs in its folder.
    fn workspaces(script: &str, deadline_ms: u64) -> (TempDir, Workspaces) {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        program::write(&program, &format!("#!/bin/sh\ncd {}\n{script}\n", dir.path().display()));
        (dir, Workspaces::new(program, Duration::from_millis(deadline_ms)))
    }

    #[tokio::test]
    async fn an_answer_is_passed_on_and_a_process_without_one_is_reported() {
        let (_dir, answers) = workspaces(r#"echo '{"Ok":"same"}'"#, 60_000);
        assert_eq!(answers.share(spec()).await, Ok(ExistingMount::Same));
        let (_dir, refuses) = workspaces(r#"echo '{"Err":{"code":"invalid","detail":"no such folder"}}'"#, 60_000);
        assert_eq!(refuses.share(spec()).await.unwrap_err().detail, "no such folder");
        let (_dir, dies) = workspaces("exit 3", 60_000);
        let problem = dies.share(spec()).await.unwrap_err();
        assert_eq!((problem.code, problem.detail.contains("exit status: 3")), (Code::Internal, true), "{problem}");
    }

    #[tokio::test]
    async fn a_process_that_hangs_is_killed() {
        let (_dir, hangs) = workspaces("exec sleep 1000", 100);
        let problem = hangs.share(spec()).await.unwrap_err();
        assert!(problem.detail.contains("did not answer"), "{problem}");
        // The permit is returned when the process ends.
        for _ in 0..CONCURRENT_MAX {
            hangs.permits.acquire(UID).await.unwrap().forget();
        }
    }

    #[tokio::test]
    async fn all_developers_together_have_so_many_processes() {
        let (dir, begins) = workspaces("touch begun; sleep 0.1; echo '{\"Ok\":\"same\"}'", 500);
        let others = begins.permits_of_all.clone().acquire_many_owned(CONCURRENT_TOTAL_MAX as u32).await.unwrap();
        assert!(begins.share(spec()).await.is_err());
        assert!(!dir.path().join("begun").exists());
        drop(others);
        assert_eq!(begins.share(spec()).await, Ok(ExistingMount::Same));
    }

    /// Starts a call with this script, whose first command must be `touch begun`, and drops it.
    async fn start_and_drop(dir: &Path, workspaces: &Workspaces, spec: ShareSpec) {
        let begun = async {
            while !dir.join("begun").exists() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            _ = workspaces.share(spec) => panic!("it answered"),
            () = begun => {}
        }
    }

    #[tokio::test]
    async fn a_process_ends_with_its_caller() {
        let (dir, hangs) = workspaces("touch begun; exec sleep 1000", 60_000);
        start_and_drop(dir.path(), &hangs, spec()).await;
        for _ in 0..CONCURRENT_MAX {
            timeout(Duration::from_secs(10), hangs.permits.acquire(UID)).await.unwrap().unwrap().forget();
        }
    }

    /// A specification to mount the workspace `w` of the machine in this folder.
    fn mounting(dir: &Path) -> (MachinePaths, ShareSpec) {
        let paths = MachinePaths::new(dir, "m".parse().unwrap());
        let mount_point = Some(paths.workspace("w"));
        let mount = Some(MountRequest { vmm_uid: UID, vmm_pid: None, note: paths.revocation("w") });
        (paths, ShareSpec { mount_point, mount, ..spec() })
    }

    #[tokio::test]
    async fn share_whose_caller_left_mounts_nothing() {
        let (dir, mounts) = workspaces("touch begun; sleep 0.3; mkdir -p machines/m/workspaces/w", 60_000);
        let (paths, spec) = mounting(dir.path());
        start_and_drop(dir.path(), &mounts, spec).await;
        assert!(matches!(mounts.revoke(UID, &paths, "w", None).await.unwrap(), Revoked::Unused));
        sleep(Duration::from_millis(600)).await;
        assert!(!paths.workspace("w").exists());
    }

    #[tokio::test]
    async fn revocation_waits_for_a_mount_in_progress() {
        let (dir, mounts) = workspaces("exit 3", 60_000);
        let (paths, _) = mounting(dir.path());
        fs::create_dir_all(paths.workspace("w")).unwrap();
        let mount = mounts.mounts.acquire(paths.workspace("w")).await.unwrap();
        let mut revoke = Box::pin(mounts.revoke(UID, &paths, "w", None));
        assert!(timeout(Duration::from_millis(50), &mut revoke).await.is_err());
        assert!(paths.workspace("w").exists());
        drop(mount);
        assert!(matches!(revoke.await.unwrap(), Revoked::Unused));
    }

    #[tokio::test]
    async fn a_mount_point_is_one_processs_at_a_time() {
        let script = "mkdir mounting || exit 3; sleep 0.1; rmdir mounting; echo '{\"Ok\":\"same\"}'";
        let (dir, mounts) = workspaces(script, 60_000);
        let share = || mounts.share(mounting(dir.path()).1);
        assert_eq!(tokio::join!(share(), share()), (Ok(ExistingMount::Same), Ok(ExistingMount::Same)));
    }

    #[tokio::test]
    async fn folders_that_hang_delay_no_revocation() {
        let (dir, mounts) = workspaces("exit 3", 60_000);
        let (paths, _) = mounting(dir.path());
        fs::create_dir_all(paths.workspace("w")).unwrap();
        let mut taken = Vec::new();
        for permits in [&mounts.permits, &mounts.scans] {
            for _ in 0..CONCURRENT_MAX {
                taken.push(permits.acquire(UID).await.unwrap());
            }
        }
        let gone = async {
            while paths.workspace("w").exists() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            _ = mounts.revoke(UID, &paths, "w", None) => {}
            () = gone => {}
            () = sleep(Duration::from_secs(10)) => panic!("it waits for a permit"),
        }
        assert!(!paths.workspace("w").exists());
    }
}
