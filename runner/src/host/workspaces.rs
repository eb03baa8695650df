//! Adds workspaces to a running machine and removes them, as mounts below the folder that its virtio-fs device serves.
//!
//! That folder is a shared mount, and its copy in the jail is a slave: a mount here appears there, never the reverse.
//! [`share`](super::share) mounts the workspaces.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::Context;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};

use super::MachinePaths;
use super::revocation::MountUsers;

/// Creates the folder in which workspaces are mounted, as a shared mount of its own.
pub(super) fn prepare(paths: &MachinePaths) -> anyhow::Result<()> {
    let folder = paths.workspaces();
    fs::create_dir_all(&folder)?;
    if !is_mount_point(&folder)? {
        mount_bind(&folder, &folder).with_context(|| format!("cannot bind {}", folder.display()))?;
        // Leaves the parent's peer group, in which each workspace would be mounted once more.
        mount_change(&folder, MountPropagationFlags::PRIVATE)?;
    }
    Ok(mount_change(&folder, MountPropagationFlags::SHARED)?)
}

/// Unmounts the environment's workspace, so that the guest can no longer reach it by name. Returns an object that finds
/// the workspace's files that the VMM still has open, or the error that prevents that. The mounts are recorded until
/// [`forget_revocation`], so that a later removal and a daemon that starts meanwhile find them too.
///
/// # Errors
/// The workspace cannot be unmounted.
pub(crate) fn revoke_workspace(
    paths: &MachinePaths,
    environment: &str,
    vmm_pid: Option<u32>,
) -> anyhow::Result<io::Result<MountUsers>> {
    let note = paths.revocation(environment);
    let users = vmm_pid.map_or_else(|| Ok(MountUsers::default()), |pid| mount_users(&note, pid));
    if let Ok(users) = &users
        && let Err(error) = write_note(&note, users)
    {
        // The file is needed only if the daemon ends in the next seconds.
        tracing::warn!("cannot write {}: {error}", note.display());
    }
    // Unmount even if the VMM's mounts cannot be read.
    unshare(paths, environment)?;
    Ok(users)
}

/// The mounts of the workspace in the VMM's namespace, plus those in `note`, a file with the environment's id as its
/// name.
///
/// # Errors
/// The VMM's mounts cannot be read.
pub(super) fn mount_users(note: &Path, vmm_pid: u32) -> io::Result<MountUsers> {
    let environment = note.file_name().unwrap_or_default();
    let earlier = fs::read(note).ok().and_then(|noted| serde_json::from_slice(&noted).ok()).unwrap_or_default();
    MountUsers::new(vmm_pid, &Path::new("/workspaces").join(environment), &earlier)
}

/// Writes the file completely or leaves it unchanged. After the unmount, only this file shows which open files of the
/// VMM belong to these mounts.
pub(super) fn write_note(note: &Path, users: &MountUsers) -> io::Result<()> {
    if users.mounts().is_empty() {
        return Ok(());
    }
    if let Some(folder) = note.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    // No environment's id has a dot.
    let new = note.with_extension("new");
    fs::write(&new, serde_json::to_vec(users.mounts())?)?;
    fs::rename(&new, note)
}

/// Removes the record of a revocation after which the VMM has no file of the workspace open.
pub(crate) fn forget_revocation(paths: &MachinePaths, environment: &str) {
    // A file that remains is about mounts that no longer exist.
    let _ = fs::remove_file(paths.revocation(environment));
}

fn unshare(paths: &MachinePaths, environment: &str) -> anyhow::Result<()> {
    let target = paths.workspace(environment);
    // One mount may lie on top of another.
    while detach(&target)? {}
    match fs::remove_dir(&target) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", target.display()))
        }
        _ => Ok(()),
    }
}

/// Unmounts all workspaces of the machine.
pub(super) fn remove_all(paths: &MachinePaths) -> anyhow::Result<()> {
    let folder = paths.workspaces();
    if let Ok(entries) = fs::read_dir(&folder) {
        for entry in entries {
            let name = entry?.file_name();
            unshare(paths, &name.to_string_lossy())?;
        }
    }
    // Without a VMM, no workspace is held.
    if let Err(error) = fs::remove_dir_all(&paths.revocations)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("cannot remove {}", paths.revocations.display()));
    }
    detach(&folder).map(drop)
}

/// Detaches the topmost mount at `path`. Returns false if nothing is mounted there.
pub(super) fn detach(path: &Path) -> anyhow::Result<bool> {
    match unmount(path, UnmountFlags::DETACH) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOENT) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot unmount {}", path.display())),
    }
}

/// Whether `path` is a mount point. A bind mount of a folder onto itself counts, which device numbers would not show.
pub(super) fn is_mount_point(path: &Path) -> anyhow::Result<bool> {
    let mount =
        |path: &Path| statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID).map(|stat| stat.stx_mnt_id);
    let parent = path.parent().context("a mount point has a parent")?;
    Ok(mount(path)? != mount(parent)?)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::ffi::OsStrExt;
    use std::process::{Command, Stdio};

    use super::*;

    /// A machine's folders, and a folder with a file that is mounted `times` times as the workspace `w`.
    fn shared(times: usize) -> (tempfile::TempDir, MachinePaths) {
        let dir = tempfile::tempdir().unwrap();
        let paths = MachinePaths::new(dir.path(), "m".parse().unwrap());
        let source = dir.path().join(OsStr::from_bytes(b"\xff"));
        fs::create_dir_all(&source).unwrap();
        fs::write(source.join("file"), "").unwrap();
        fs::create_dir_all(paths.workspace("w")).unwrap();
        for _ in 0..times {
            mount_bind(&source, paths.workspace("w")).unwrap();
        }
        (dir, paths)
    }

    #[test]
    fn stacked_mounts_are_all_removed() {
        let (_dir, paths) = shared(3);
        revoke_workspace(&paths, "w", None).unwrap().unwrap();
        assert!(!paths.workspace("w").exists());
    }

    #[test]
    fn a_workspace_is_removed_if_its_users_are_unknown() {
        let (_dir, paths) = shared(1);
        // The kernel shows no mounts of a process that has ended but was not waited for.
        let mut ended = Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
        ended.stdout.take().unwrap().read_to_end(&mut Vec::new()).unwrap();
        let mountinfo = format!("/proc/{}/mountinfo", ended.id());
        while fs::read(&mountinfo).is_ok() {
            std::thread::yield_now();
        }
        revoke_workspace(&paths, "w", Some(ended.id())).unwrap().unwrap_err();
        assert!(!paths.workspace("w").exists());
        ended.wait().unwrap();
    }

    #[test]
    fn a_workspace_is_removed_if_the_record_cannot_be_written() {
        let (_dir, paths) = shared(1);
        fs::write(paths.revocations.parent().unwrap(), "").unwrap();
        revoke_workspace(&paths, "w", Some(std::process::id())).unwrap().unwrap();
        assert!(!paths.workspace("w").exists());
    }

    #[test]
    fn held_workspaces_are_found_again_until_they_are_reported() {
        let (_dir, paths) = shared(1);
        let held = File::open(paths.workspace("w").join("file")).unwrap();
        let fdinfo = format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
        let fdinfo = fs::read_to_string(fdinfo).unwrap();
        let mount: u64 = fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:")).unwrap().trim().parse().unwrap();
        // The state after a daemon that ended after the unmount: this process does not see the machine's mount point.
        fs::create_dir_all(&paths.revocations).unwrap();
        fs::write(paths.revocation("w"), format!("[{mount}]")).unwrap();
        unmount(paths.workspace("w"), UnmountFlags::DETACH).unwrap();
        let open = || revoke_workspace(&paths, "w", Some(std::process::id())).unwrap().unwrap().open_files().unwrap();
        assert_eq!((open(), open()), (1, 1));
        forget_revocation(&paths, "w");
        assert_eq!(open(), 0);
        remove_all(&paths).unwrap();
        assert!(!paths.revocations.exists());
    }
}
