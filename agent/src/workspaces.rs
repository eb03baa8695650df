//! Releases a workspace: afterwards no process in the guest uses its folder.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use garret_api::{Code, Problem};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::blocking::Blocking;

/// How long a killed process may take to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// Scanning all processes, unmounting and dropping caches. The limit is shorter than the time the runner waits.
static RELEASE: Blocking = Blocking::new("releasing the workspace", 4, Duration::from_secs(100));

/// Checks a share's name: it must be the name of one folder.
pub(crate) fn check_name(share: &str) -> Result<(), Problem> {
    if share.is_empty() || share.contains(['/', '\0']) || share == "." || share == ".." {
        return Err(Problem::new(Code::Invalid, format!("{share:?} is not a workspace's name")));
    }
    Ok(())
}

/// Kills the processes that still use `folder` (containers have been stopped before), unmounts it and drops the
/// kernel's caches of it.
pub(crate) async fn release(folder: PathBuf) -> Result<(), Problem> {
    RELEASE.run(move || release_now(&folder)).await?
}

fn release_now(folder: &Path) -> Result<(), Problem> {
    let Ok(metadata) = fs::metadata(folder) else { return Ok(()) };
    // Each workspace is a separate file system that the server announces. Its device number identifies its users in
    // every mount namespace. A plain folder of the share has no number of its own.
    let parent = folder.parent().and_then(|parent| fs::metadata(parent).ok());
    let device = parent.filter(|parent| parent.dev() != metadata.dev()).map(|_| metadata.dev());
    users(folder, device).into_iter().for_each(end);
    let failed = |what: &str, error: io::Error| {
        Problem::new(Code::Conflict, format!("the workspace {folder:?} is still in use: {what}: {error}"))
    };
    // Sync only this file system: the data disk may have much to write.
    let sync = || -> io::Result<()> { Ok(rustix::fs::syncfs(fs::File::open(folder)?)?) };
    if let Err(error) = sync() {
        tracing::warn!("the workspace {folder:?} was not synced before its release: {error}");
    }
    match rustix::mount::unmount(folder, UnmountFlags::NOFOLLOW) {
        // `INVAL`: not a mount point (any more).
        Ok(()) | Err(rustix::io::Errno::INVAL) => {}
        Err(error) => return Err(failed("unmount", error.into())),
    }
    // `2` drops dentries and inodes: the server closes a file when the guest forgets it.
    fs::write("/proc/sys/vm/drop_caches", "2").map_err(|error| failed("drop caches", error))
}

/// Processes that have a file, folder, program or mapping on it, except this process.
fn users(folder: &Path, device: Option<u64>) -> Vec<Pid> {
    let own = rustix::process::getpid();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw));
    pids.filter(|pid| *pid != own && uses(*pid, folder, device)).collect()
}

fn uses(pid: Pid, folder: &Path, device: Option<u64>) -> bool {
    let process = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let links = ["cwd", "root", "exe"].into_iter().map(|name| process.join(name));
    let entries =
        |name: &str| fs::read_dir(process.join(name)).into_iter().flatten().flatten().map(|entry| entry.path());
    links.chain(entries("fd")).chain(entries("map_files")).any(|link| match device {
        Some(device) => fs::metadata(&link).is_ok_and(|metadata| metadata.dev() == device),
        None => fs::read_link(&link).is_ok_and(|target| target.starts_with(folder)),
    })
}

/// Kills one process and waits until it has ended.
fn end(pid: Pid) {
    let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return };
    tracing::info!("killing process {}, which uses a workspace that is being released", pid.as_raw_nonzero());
    let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
    let timeout = Timespec { tv_sec: KILL_TIMEOUT.as_secs() as i64, tv_nsec: 0 };
    let _ = rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout));
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn names_are_one_folder() {
        assert!(check_name("a b ü").is_ok());
        for bad in ["", ".", "..", "a/b", "/"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_process_with_its_working_folder_there_is_found_and_ended() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("cat");
        let mut child = command.current_dir(folder.path()).stdin(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_child(&child);
        assert_eq!(users(folder.path(), None), [pid]);
        end(pid);
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        assert!(users(folder.path(), None).is_empty());
    }
}
