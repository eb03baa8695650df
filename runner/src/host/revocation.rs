//! Proof that a VMM holds nothing of a workspace that was taken from it. It does not rest on Landlock, which the host's
//! kernel may lack: a descriptor that the VMM keeps open would reach into the workspace after its mount is gone.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The mounts of one folder in a VMM's mount namespace, and the VMM, which may use them.
#[derive(Debug)]
pub struct MountUsers {
    process: PathBuf,
    mounts: BTreeSet<u64>,
}

impl MountUsers {
    /// Records the mounts at `mount_point`, as process `pid` sees it, while they are there.
    ///
    /// # Errors
    /// The process's mounts cannot be read. A process that has ended has none.
    pub fn new(pid: u32, mount_point: &Path) -> io::Result<Self> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let mountinfo = unless_ended(fs::read_to_string(process.join("mountinfo")))?.unwrap_or_default();
        Ok(Self { process, mounts: mounts_at(&mountinfo, mount_point) })
    }

    /// How many descriptors the process has open on these mounts.
    ///
    /// # Errors
    /// The process's descriptors cannot be listed.
    pub fn open_files(&self) -> io::Result<usize> {
        if self.mounts.is_empty() {
            return Ok(0);
        }
        let Some(entries) = unless_ended(fs::read_dir(self.process.join("fdinfo")))? else { return Ok(0) };
        // One that was closed meanwhile is not counted.
        let mounts = entries.flatten().filter_map(|entry| mount_of(&fs::read_to_string(entry.path()).ok()?));
        Ok(mounts.filter(|mount| self.mounts.contains(mount)).count())
    }
}

fn unless_ended<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The ids of the mounts at a mount point whose name has no blank: field 1 where field 5 is it (proc_pid_mountinfo(5)).
fn mounts_at(mountinfo: &str, mount_point: &Path) -> BTreeSet<u64> {
    let at = |line: &str| {
        let mut fields = line.split(' ');
        let id = fields.next()?.parse().ok()?;
        (Path::new(fields.nth(3)?) == mount_point).then_some(id)
    };
    mountinfo.lines().filter_map(at).collect()
}

/// The mount that a descriptor is on (proc_pid_fdinfo(5)).
fn mount_of(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::mount::{UnmountFlags, mount_bind, unmount};

    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let mountinfo = "36 35 98:0 / /workspaces rw - ext4 /dev/root rw\n\
                         37 36 98:0 /home/a /workspaces/a-1 rw,noatime shared:2 - ext4 /dev/root rw\n\
                         38 36 98:0 /home/b /workspaces/a-12 rw - ext4 /dev/root rw\n\
                         39 37 98:0 /home/c /workspaces/a-1 rw - ext4 /dev/root rw\nrubbish\n";
        assert_eq!(mounts_at(mountinfo, Path::new("/workspaces/a-1")), BTreeSet::from([37, 39]));
        assert_eq!(mounts_at(mountinfo, Path::new("/workspaces/a")), BTreeSet::new());
        assert_eq!(mount_of("pos:\t0\nflags:\t02\nmnt_id:\t37\nino:\t5\n"), Some(37));
        assert_eq!(mount_of("pos:\t0\n"), None);
    }

    #[test]
    fn a_descriptor_of_a_mount_that_is_gone_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        fs::create_dir(&source).unwrap();
        fs::create_dir(&target).unwrap();
        fs::write(source.join("file"), "").unwrap();
        mount_bind(&source, &target).unwrap();
        let held = File::open(target.join("file")).unwrap();
        let beside = File::open(source.join("file")).unwrap();
        let users = MountUsers::new(std::process::id(), &target).unwrap();
        unmount(&target, UnmountFlags::DETACH).unwrap();
        assert_eq!(users.open_files().unwrap(), 1);
        drop(held);
        assert_eq!(users.open_files().unwrap(), 0);
        drop(beside);
        assert_eq!(
            MountUsers::new(std::process::id(), &target).unwrap().open_files().unwrap(),
            0,
            "nothing is mounted there"
        );
        assert_eq!(MountUsers::new(i32::MAX as u32, &target).unwrap().open_files().unwrap(), 0, "no such process");
    }
}
