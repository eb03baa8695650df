//! A VMM's process. It is not the runner's child, so it is watched through a pidfd.

#![allow(unsafe_code, reason = "register_with_interest has no safe variant for a descriptor")]

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use super::state::VmmId;

/// The pause before a connection is retried that found the backlog full.
const BACKLOG_PAUSE: Duration = Duration::from_millis(50);
/// The most tries, which take 10 s: a VMM that accepts no connection delays the daemon no longer than this.
const CONNECTS_MAX: u32 = 200;

/// A running VMM, or one that has just ended.
#[derive(Debug)]
pub(super) struct VmmProcess {
    pub id: VmmId,
    pidfd: AsyncFd<OwnedFd>,
}

impl VmmProcess {
    /// Watches the process that has this process id now.
    pub(super) fn watch(pid: u32) -> io::Result<Option<Self>> {
        let Some(pidfd) = open(pid)? else { return Ok(None) };
        // Read after the pidfd was opened, so this is the start time of the same process, or the process is gone
        // already.
        let Ok(started) = start_time(pid) else { return Ok(None) };
        let id = VmmId { pid, started, boot_id: boot_id()? };
        // SAFETY: an `OwnedFd` names one open descriptor, the same for its whole life.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        Ok(Some(Self { id, pidfd }))
    }

    /// Watches exactly this process, if it still runs.
    pub(super) fn find(id: &VmmId) -> io::Result<Option<Self>> {
        Ok(Self::watch(id.pid)?.filter(|found| found.id == *id))
    }

    /// Finds the process that listens on the VMM's API, if there is one. This also finds a VMM that is not in the
    /// state.
    ///
    /// # Errors
    /// The host cannot tell, for example because it has no free descriptor.
    pub(super) async fn listening_on(socket: &Path) -> io::Result<Option<Self>> {
        for _ in 0..CONNECTS_MAX {
            match UnixStream::connect(socket).await {
                Ok(stream) => {
                    return match stream.peer_cred()?.pid() {
                        Some(pid) if pid > 0 => Self::watch(pid as u32),
                        _ => Ok(None),
                    };
                }
                // The backlog is full, so a process does listen.
                Err(error) if error.kind() == ErrorKind::WouldBlock => tokio::time::sleep(BACKLOG_PAUSE).await,
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        Err(ErrorKind::WouldBlock.into())
    }

    /// Returns when the process has ended. Cancel-safe.
    pub(super) async fn ended(&self) {
        // A pidfd becomes readable when the process ends. This cannot fail while the reactor lives.
        let _ = self.pidfd.readable().await;
    }

    pub(super) fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The uid that the process runs with (proc_pid_status(5)); `None` if it has ended.
pub(super) fn uid_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
}

fn open(pid: u32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::NONBLOCK) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The id of the host's current boot.
pub(super) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Field 22 of `/proc/<pid>/stat`, counted after the name, which may contain any character (proc_pid_stat(5)).
fn start_time(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields.split_whitespace());
    fields.and_then(|mut fields| fields.nth(19)?.parse().ok()).ok_or_else(|| ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn an_end_is_noticed_and_an_id_is_not_taken_for_another() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = VmmProcess::watch(child.id()).unwrap().unwrap();
        assert!(VmmProcess::find(&process.id).unwrap().is_some());
        let earlier = VmmId { started: process.id.started - 1, ..process.id.clone() };
        assert!(VmmProcess::find(&earlier).unwrap().is_none());
        let other_boot = VmmId { boot_id: "another".into(), ..process.id.clone() };
        assert!(VmmProcess::find(&other_boot).unwrap().is_none());
        process.kill().unwrap();
        process.ended().await;
        child.wait().unwrap();
        assert!(VmmProcess::find(&process.id).unwrap().is_none());
        process.kill().unwrap();
    }

    #[tokio::test]
    async fn the_process_that_listens_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        assert!(VmmProcess::listening_on(&socket).await.unwrap().is_none());
        let _listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let found = VmmProcess::listening_on(&socket).await.unwrap().unwrap();
        assert_eq!(found.id.pid, std::process::id());
    }

    #[tokio::test]
    async fn only_a_socket_without_listener_is_no_vmm() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        drop(tokio::net::UnixListener::bind(&socket).unwrap());
        assert!(VmmProcess::listening_on(&socket).await.unwrap().is_none());
        // Any other error will do: this one is ELOOP.
        fs::remove_file(&socket).unwrap();
        std::os::unix::fs::symlink(&socket, &socket).unwrap();
        assert!(VmmProcess::listening_on(&socket).await.is_err());
    }
}
