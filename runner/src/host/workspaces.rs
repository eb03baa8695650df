//! Workspaces come into and leave a running machine as bind mounts below the folder its virtio-fs device serves.
//!
//! That folder is a shared mount and its copy in the jail a slave: what is mounted here appears there, never the reverse.

use std::fs;
use std::path::Path;

use anyhow::Context;
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount_bind, mount_change, mount_remount, unmount,
};

use super::MachinePaths;

/// Makes the folder that workspaces are bound in, as a shared mount of its own.
pub(super) fn prepare(paths: &MachinePaths) -> anyhow::Result<()> {
    let folder = paths.workspaces();
    fs::create_dir_all(&folder)?;
    fs::create_dir_all(paths.staging())?;
    if !is_mount_point(&folder)? {
        mount_bind(&folder, &folder).with_context(|| format!("cannot bind {}", folder.display()))?;
    }
    mount_change(&folder, MountPropagationFlags::SHARED)?;
    // Binds get their flags in the staging folder, which nobody shares.
    if !is_mount_point(&paths.staging())? {
        mount_bind(paths.staging(), paths.staging())?;
    }
    mount_change(paths.staging(), MountPropagationFlags::PRIVATE)?;
    Ok(())
}

/// Shares `workspace` into the machine under the environment's name.
///
/// # Errors
/// The workspace is missing, or the kernel refuses the mount.
pub fn share_workspace(paths: &MachinePaths, environment: &str, workspace: &Path) -> anyhow::Result<()> {
    prepare(paths)?;
    let target = paths.workspaces().join(environment);
    fs::create_dir_all(&target)?;
    if is_mount_point(&target)? {
        return Ok(());
    }
    // A remount does not propagate: the flags must be on the mount before it is bound where the jail sees it.
    let staging = paths.staging().join(environment);
    fs::create_dir_all(&staging)?;
    mount_bind(workspace, &staging).with_context(|| format!("cannot share {}", workspace.display()))?;
    let flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
    let shared = mount_remount(&staging, flags, "").and_then(|()| mount_bind(&staging, &target));
    unmount(&staging, UnmountFlags::DETACH)?;
    fs::remove_dir(&staging)?;
    shared.with_context(|| format!("cannot share {}", workspace.display()))
}

/// Takes the environment's workspace out of the machine. Files the guest still holds open stay readable to it until it
/// lets go of them; their names are gone at once.
pub fn unshare_workspace(paths: &MachinePaths, environment: &str) -> anyhow::Result<()> {
    let target = paths.workspaces().join(environment);
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
            unshare_workspace(paths, &name.to_string_lossy())?;
        }
    }
    for mount in [&folder, &paths.staging()] {
        match unmount(mount, UnmountFlags::DETACH) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot unmount {}", mount.display())),
        }
    }
    Ok(())
}

/// Whether `path` itself is mounted on; a bind of a folder onto itself counts, which device numbers would not show.
fn is_mount_point(path: &Path) -> anyhow::Result<bool> {
    let path = path.canonicalize()?;
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mount_points(&table).any(|point| Path::new(&point) == path))
}

/// The mount points of a `mountinfo` table (proc_pid_mountinfo(5): the fifth field, with octal escapes).
fn mount_points(table: &str) -> impl Iterator<Item = String> {
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape)
}

fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (escape, character)| text.replace(escape, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        let table = "36 35 98:0 /mnt1 /mnt\\040two rw,noatime master:1 - ext3 /dev/root rw\n";
        assert_eq!(mount_points(table).collect::<Vec<_>>(), ["/mnt two"]);
    }
}
