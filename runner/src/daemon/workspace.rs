//! Opens a workspace with its developer's rights, not root's: nobody may share a folder they could not reach themselves.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use garret_api::Problem;
use rustix::fs::{Access, AtFlags, Mode, OFlags, accessat, open};
use rustix::io::Errno;
use rustix::process::{Gid, Uid, geteuid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::accounts::Accounts;

/// A workspace that was found and may be shared. It stays the same folder whatever its path may name later.
#[derive(Debug)]
pub struct Workspace(OwnedFd);

impl Workspace {
    /// A path that leads to this very folder, for as long as this value lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}

/// Opens the folder as this uid, with its groups. Blocks.
///
/// # Errors
/// One line for the developer: the path is relative, missing, no folder, or not theirs to read and write.
pub fn open_as(uid: u32, workspace: &Path) -> Result<Workspace, Problem> {
    if !workspace.is_absolute() {
        return Err(refused(workspace, "not an absolute path"));
    }
    let path = workspace.to_owned();
    // A thread of its own: rights are a thread's in Linux, and this one gives its up for good.
    let opened = thread::spawn(move || {
        become_user(uid)?;
        let folder = open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        accessat(&folder, ".", Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK, AtFlags::empty())?;
        Ok(folder)
    })
    .join();
    match opened {
        Ok(Ok(folder)) => Ok(Workspace(folder)),
        Ok(Err(error)) => Err(explain(workspace, error)),
        Err(_) => Err(Problem::new("internal", format!("workspace {}: the check died", workspace.display()))),
    }
}

fn become_user(uid: u32) -> Result<(), Errno> {
    let (user, me) = (Uid::from_raw(uid), geteuid());
    if me == user || !me.is_root() {
        return Ok(());
    }
    let accounts = Accounts::read();
    let groups: Vec<Gid> = accounts.groups_of(uid).into_iter().map(Gid::from_raw).collect();
    // An uid without an account has no group but the one nobody else has.
    let primary = groups.first().copied().unwrap_or_else(|| Gid::from_raw(uid));
    set_thread_groups(&groups)?;
    set_thread_res_gid(primary, primary, primary)?;
    set_thread_res_uid(user, user, user)
}

fn explain(workspace: &Path, error: Errno) -> Problem {
    match error {
        Errno::NOENT => refused(workspace, "no such folder"),
        Errno::NOTDIR => refused(workspace, "not a folder"),
        Errno::ACCESS | Errno::PERM => {
            Problem::new("forbidden", format!("workspace {}: you may not read and write it", workspace.display()))
        }
        other => refused(workspace, io::Error::from(other)),
    }
}

fn refused(workspace: &Path, why: impl fmt::Display) -> Problem {
    Problem::new("invalid", format!("workspace {}: {why}", workspace.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NOBODY: u32 = 65534;

    fn said(uid: u32, path: &Path) -> String {
        open_as(uid, path).unwrap_err().message
    }

    #[test]
    fn what_is_no_folder_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let me = geteuid().as_raw();
        assert!(said(me, Path::new("relative/path")).ends_with("relative/path: not an absolute path"));
        assert!(said(me, &dir.path().join("missing")).ends_with("missing: no such folder"));
        assert!(said(me, &file).ends_with("file: not a folder"));
    }

    #[test]
    fn the_developers_rights_count_not_roots() {
        assert!(geteuid().is_root(), "this test needs root, as the daemon does");
        let dir = tempfile::tempdir().unwrap();
        let mode = |mode| fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
        for (bits, allowed) in [(0o700, false), (0o755, false), (0o777, true)] {
            mode(bits);
            assert_eq!(open_as(NOBODY, dir.path()).is_ok(), allowed, "{bits:o}");
            assert!(open_as(0, dir.path()).is_ok());
        }
        mode(0o755);
        assert!(said(NOBODY, dir.path()).ends_with("you may not read and write it"));
        std::os::unix::fs::chown(dir.path(), Some(NOBODY), None).unwrap();
        assert!(open_as(NOBODY, dir.path()).is_ok());
        assert!(geteuid().is_root(), "the rights given up were the thread's alone");
    }

    #[test]
    fn the_folder_stays_the_same_when_its_path_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, moved) = (dir.path().join("w"), dir.path().join("moved"));
        fs::create_dir(&folder).unwrap();
        let workspace = open_as(geteuid().as_raw(), &folder).unwrap();
        fs::rename(&folder, &moved).unwrap();
        std::os::unix::fs::symlink("/etc", &folder).unwrap();
        assert_eq!(fs::canonicalize(workspace.path()).unwrap(), fs::canonicalize(&moved).unwrap());
    }
}
