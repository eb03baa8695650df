//! Proves that a VMM holds nothing of a workspace that was revoked. The proof does not depend on Landlock, which the
//! host's kernel may lack. A descriptor that the VMM keeps open would give access to the workspace after the unmount.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The mounts of one folder in a VMM's mount namespace, and the VMM that may use them.
#[derive(Debug, Default)]
pub(crate) struct MountUsers {
    process: PathBuf,
    mounts: BTreeSet<u64>,
}

impl MountUsers {
    /// Records the mounts at `mount_point`, as process `pid` sees it, while they exist. `earlier` are mounts that were
    /// there before.
    ///
    /// # Errors
    /// The process's mounts cannot be read. A process that has ended has none.
    pub(crate) fn new(pid: u32, mount_point: &Path, earlier: &BTreeSet<u64>) -> io::Result<Self> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        // Read as bytes: a mount's source has a name that its developer chose.
        let mountinfo = unless_ended(fs::read(process.join("mountinfo")))?.unwrap_or_default();
        Ok(Self { process, mounts: mounts_at(&mountinfo, mount_point, earlier) })
    }

    /// The kernel's ids of the mounts.
    pub(crate) fn mounts(&self) -> &BTreeSet<u64> {
        &self.mounts
    }

    /// How many descriptors the process has open on these mounts.
    ///
    /// # Errors
    /// The process's descriptors cannot be read.
    pub(crate) fn open_files(&self) -> io::Result<usize> {
        if self.mounts.is_empty() {
            return Ok(0);
        }
        let Some(entries) = unless_ended(fs::read_dir(self.process.join("fdinfo")))? else { return Ok(0) };
        let mut open = 0;
        for entry in entries {
            // A descriptor that was closed meanwhile is not counted.
            let Some(fdinfo) = unless_ended(entry.and_then(|entry| fs::read_to_string(entry.path())))? else {
                continue;
            };
            open += usize::from(mount_of(&fdinfo).is_some_and(|mount| self.mounts.contains(&mount)));
        }
        Ok(open)
    }
}

fn unless_ended<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The ids of the mounts at a mount point without spaces in its name: field 1 of the lines with this field 5
/// (proc_pid_mountinfo(5)). Also the earlier ids, unless another mount has the id now: the kernel does not reuse an id
/// that is in use.
fn mounts_at(mountinfo: &[u8], mount_point: &Path, earlier: &BTreeSet<u64>) -> BTreeSet<u64> {
    let mut mounts = earlier.clone();
    for line in mountinfo.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b' ');
        let id = fields.next().and_then(|id| str::from_utf8(id).ok()?.parse().ok());
        let (Some(id), Some(at)) = (id, fields.nth(3)) else { continue };
        match at == mount_point.as_os_str().as_bytes() {
            true => mounts.insert(id),
            false => mounts.remove(&id),
        };
    }
    mounts
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
        let mountinfo = b"36 35 98:0 / /workspaces rw - ext4 /dev/root rw\n\
                          37 36 98:0 /home/a /workspaces/a-1 rw,noatime shared:2 - ext4 /dev/root rw\n\
                          38 36 98:0 /home/\xff /workspaces/a-12 rw - ext4 /dev/root rw\n\
                          39 37 98:0 /home/\xff /workspaces/a-1 rw - ext4 /dev/root rw\nrubbish\n";
        let at = |path, earlier| mounts_at(mountinfo, Path::new(path), &BTreeSet::from(earlier));
        assert_eq!(at("/workspaces/a-1", []), BTreeSet::from([37, 39]));
        assert_eq!(at("/workspaces/a", [0; 0]), BTreeSet::new());
        assert_eq!(mount_of("pos:\t0\nflags:\t02\nmnt_id:\t37\nino:\t5\n"), Some(37));
        assert_eq!(mount_of("pos:\t0\n"), None);
    }

    #[test]
    fn an_earlier_mount_counts_until_its_number_is_anothers() {
        let mountinfo = b"36 35 98:0 / /workspaces rw - ext4 /dev/root rw\n\
                          38 36 98:0 /home/b /workspaces/b rw - ext4 /dev/root rw\n";
        let earlier = BTreeSet::from([37, 38]);
        assert_eq!(mounts_at(mountinfo, Path::new("/workspaces/a"), &earlier), BTreeSet::from([37]));
    }

    #[test]
    fn a_descriptor_that_cannot_be_read_is_not_taken_for_closed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("fdinfo/3")).unwrap();
        let users = MountUsers { process: dir.path().into(), mounts: BTreeSet::from([37]) };
        assert!(users.open_files().is_err());
        fs::remove_dir(dir.path().join("fdinfo/3")).unwrap();
        fs::write(dir.path().join("fdinfo/4"), "mnt_id:\t37\n").unwrap();
        assert_eq!(users.open_files().unwrap(), 1);
    }

    #[test]
    fn a_descriptor_of_a_removed_mount_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        fs::create_dir(&source).unwrap();
        fs::create_dir(&target).unwrap();
        fs::write(source.join("file"), "").unwrap();
        mount_bind(&source, &target).unwrap();
        let held = File::open(target.join("file")).unwrap();
        let beside = File::open(source.join("file")).unwrap();
        let at = |pid| MountUsers::new(pid, &target, &BTreeSet::new()).unwrap();
        let users = at(std::process::id());
        unmount(&target, UnmountFlags::DETACH).unwrap();
        assert_eq!(users.open_files().unwrap(), 1);
        drop(held);
        assert_eq!(users.open_files().unwrap(), 0);
        drop(beside);
        assert_eq!(at(std::process::id()).open_files().unwrap(), 0, "nothing is mounted there");
        assert_eq!(at(i32::MAX as u32).open_files().unwrap(), 0, "no such process");
    }
}
