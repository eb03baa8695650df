//! Workspaces come into and leave a running machine as mounts below the folder its virtio-fs device serves.
//!
//! That folder is a shared mount and its copy in the jail a slave: what is mounted here appears there, never the reverse.
//! [`share`](super::share) mounts them.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};

use super::MachinePaths;
use super::revocation::MountUsers;

/// Makes the folder that workspaces are mounted in, as a shared mount of its own.
pub(super) fn prepare(paths: &MachinePaths) -> anyhow::Result<()> {
    let folder = paths.workspaces();
    fs::create_dir_all(&folder)?;
    if !is_mount_point(&folder)? {
        mount_bind(&folder, &folder).with_context(|| format!("cannot bind {}", folder.display()))?;
        // Leaves the parent's peers, where each workspace would be mounted once more.
        mount_change(&folder, MountPropagationFlags::PRIVATE)?;
    }
    Ok(mount_change(&folder, MountPropagationFlags::SHARED)?)
}

/// How long a guest that releases a workspace may take until the VMM has closed its last file.
const RELEASE: Duration = Duration::from_secs(10);
/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// Takes the environment's workspace out of the machine: its names are gone at once. Returns how many files of it the VMM
/// still has open some seconds later. They are 0 unless the guest refuses to close them.
///
/// # Errors
/// It cannot be unmounted, or the VMM's descriptors cannot be read.
pub fn revoke_workspace(paths: &MachinePaths, environment: &str, vmm: Option<u32>) -> anyhow::Result<usize> {
    let in_jail = Path::new("/workspaces").join(environment);
    let users = vmm.map(|pid| MountUsers::new(pid, &in_jail)).transpose().context("cannot read the VMM's mounts")?;
    unshare(paths, environment)?;
    let Some(users) = users else { return Ok(0) };
    let until = Instant::now() + RELEASE;
    loop {
        let open = users.open_files().context("cannot read the VMM's descriptors")?;
        if open == 0 || Instant::now() > until {
            return Ok(open);
        }
        thread::sleep(PAUSE);
    }
}

fn unshare(paths: &MachinePaths, environment: &str) -> anyhow::Result<()> {
    let target = paths.workspace(environment);
    match unmount(&target, UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(error) => return Err(error).with_context(|| format!("cannot unmount {}", target.display())),
    }
    match fs::remove_dir(&target) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", target.display()))
        }
        _ => Ok(()),
    }
}

/// Unmounts everything of the machine's.
pub(super) fn remove_all(paths: &MachinePaths) -> anyhow::Result<()> {
    let folder = paths.workspaces();
    if let Ok(entries) = fs::read_dir(&folder) {
        for entry in entries {
            let name = entry?.file_name();
            unshare(paths, &name.to_string_lossy())?;
        }
    }
    match unmount(&folder, UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot unmount {}", folder.display())),
    }
}

/// Whether `path` itself is mounted on; a bind of a folder onto itself counts, which device numbers would not show.
pub(super) fn is_mount_point(path: &Path) -> anyhow::Result<bool> {
    let mount =
        |path: &Path| statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID).map(|stat| stat.stx_mnt_id);
    let parent = path.parent().context("a mount point has a parent")?;
    Ok(mount(path)? != mount(parent)?)
}
