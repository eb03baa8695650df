//! `garret share DAEMON SPEC`: opens a workspace with its developer's rights and mounts it into their machine.
//!
//! This is a program of its own because the developer chooses the path, which may lead to a file system that never
//! answers (FUSE, NFS). The daemon kills this process at its deadline; a thread could not be killed. It has one thread,
//! because it forks (see `idmap`).

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use garret_api::{Code, Problem};
use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, StatxFlags, accessat, open, statx};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use rustix::process::{Gid, Pid, Signal, Uid, geteuid, getppid, set_parent_process_death_signal};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use serde::{Deserialize, Serialize};

use super::descriptors::close_inherited;
use super::idmap;
use super::workspaces::{mount_users, write_note};

/// The hidden subcommand that runs [`main`].
pub(crate) const SUBCOMMAND: &str = "share";
/// How long a file system may take to open and examine a folder.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// An account's identity, as the kernel checks it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
}

/// What to open, and what to do with it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ShareSpec {
    /// The workspace.
    pub folder: PathBuf,
    /// The identity whose rights are used.
    pub developer: Identity,
    /// Where it is mounted, or is to be mounted; `None`: it is only opened.
    pub mount_point: Option<PathBuf>,
    /// Mount it unless it is mounted already; `None`: do not mount it.
    pub mount: Option<MountRequest>,
}

/// The VMM that a workspace is mounted for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountRequest {
    /// The uid with which it runs. Inside the mount, the files belong to this uid, if it is not the developer's.
    pub vmm_uid: u32,
    /// The VMM's process id, if it runs.
    pub vmm_pid: Option<u32>,
    /// Where to record the mounts of an earlier folder that this mount replaces.
    pub note: PathBuf,
}

/// The earlier mount at the mount point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ExistingMount {
    /// There was no mount.
    Nothing,
    /// The same folder.
    Same,
    /// Another folder: the workspace was deleted and created again since.
    Other,
}

/// Carries out the specification and prints a JSON `Result<ExistingMount, Problem>`. `daemon` is the parent's process
/// id.
///
/// # Errors
/// The specification is invalid, or the daemon has died.
pub(crate) fn main(daemon: i32, spec: &str) -> anyhow::Result<()> {
    close_inherited()?;
    // If the waiting daemon has died, nothing must be mounted: the next daemon may have removed the environment.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The daemon may have died before that call.
    if getppid() != Pid::from_raw(daemon) {
        bail!("the daemon (process {daemon}) has ended");
    }
    let spec: ShareSpec = serde_json::from_str(spec).context("the specification")?;
    println!("{}", serde_json::to_string(&share(&spec))?);
    Ok(())
}

/// # Errors
/// One line for the developer.
pub(crate) fn share(spec: &ShareSpec) -> Result<ExistingMount, Problem> {
    let folder = open_as(&spec.developer, &spec.folder)?;
    let internal = |error: anyhow::Error| {
        Problem::new(Code::Internal, format!("cannot share {}: {error:#}", spec.folder.display()))
    };
    let Some(mount_point) = &spec.mount_point else { return Ok(ExistingMount::Nothing) };
    let found = find_existing_mount(&folder, mount_point).map_err(internal)?;
    if let Some(MountRequest { vmm_uid, vmm_pid, note }) = &spec.mount
        && found != ExistingMount::Same
    {
        let swap = (*vmm_uid != spec.developer.uid).then_some((spec.developer.uid, *vmm_uid));
        let mount = detached_mount(&folder, swap).map_err(|error| explain_mount(&spec.folder, error))?;
        if let (ExistingMount::Other, Some(vmm_pid)) = (found, vmm_pid) {
            record_former_mounts(note, *vmm_pid).map_err(internal)?;
        }
        attach(&mount, mount_point, found).map_err(internal)?;
    }
    Ok(found)
}

/// Opens the folder with these rights, not root's: a developer may share only a folder that they can reach.
fn open_as(developer: &Identity, workspace: &Path) -> Result<OwnedFd, Problem> {
    if !workspace.is_absolute() {
        return Err(refused(workspace, "not an absolute path"));
    }
    let (developer, path) = (developer.clone(), workspace.to_owned());
    // Runs in a thread of its own: in Linux, rights belong to a thread, and this thread drops its rights permanently.
    let opened = thread::spawn(move || {
        become_user(&developer)?;
        let folder = open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        accessat(&folder, ".", Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK, AtFlags::empty())?;
        Ok(folder)
    })
    .join();
    match opened {
        Ok(Ok(folder)) => Ok(folder),
        Ok(Err(error)) => Err(explain_open(workspace, error)),
        Err(_) => Err(Problem::new(Code::Internal, format!("workspace {}: the check panicked", workspace.display()))),
    }
}

fn become_user(developer: &Identity) -> Result<(), Errno> {
    let (user, me) = (Uid::from_raw(developer.uid), geteuid());
    if me == user || !me.is_root() {
        return Ok(());
    }
    let groups: Vec<Gid> = developer.groups.iter().copied().map(Gid::from_raw).collect();
    let primary = Gid::from_raw(developer.gid);
    set_thread_groups(&groups)?;
    set_thread_res_gid(primary, primary, primary)?;
    set_thread_res_uid(user, user, user)
}

/// Examines the mount at `mount_point`. A mounted folder keeps its inode, so no new folder can have the same one.
fn find_existing_mount(folder: &OwnedFd, mount_point: &Path) -> anyhow::Result<ExistingMount> {
    let parent = mount_point.parent().context("the mount point has no parent")?;
    let stat = |path: &Path| statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID);
    let there = match stat(mount_point) {
        Ok(there) => there,
        Err(Errno::NOENT) => return Ok(ExistingMount::Nothing),
        Err(error) => return Err(error).with_context(|| format!("cannot look at {}", mount_point.display())),
    };
    if there.stx_mnt_id == stat(parent)?.stx_mnt_id {
        return Ok(ExistingMount::Nothing);
    }
    let ours = statx(folder, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    let same = (ours.stx_dev_major, ours.stx_dev_minor, ours.stx_ino)
        == (there.stx_dev_major, there.stx_dev_minor, there.stx_ino);
    Ok(if same { ExistingMount::Same } else { ExistingMount::Other })
}

/// Creates a detached mount of the folder, so that it gets its flags before it is visible.
fn detached_mount(folder: &OwnedFd, swap: Option<(u32, u32)>) -> anyhow::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = open_tree(folder, "", flags)?;
    idmap::set_attributes(mount.as_fd(), swap)?;
    Ok(mount)
}

/// Records the mounts of the earlier folder. The VMM may keep its files open, and the removal of the environment must
/// find them.
fn record_former_mounts(note: &Path, vmm_pid: u32) -> anyhow::Result<()> {
    let users = mount_users(note, vmm_pid).context("cannot read the VMM's mounts")?;
    write_note(note, &users).with_context(|| format!("cannot write {}", note.display()))
}

fn attach(mount: &OwnedFd, mount_point: &Path, found: ExistingMount) -> anyhow::Result<()> {
    if found == ExistingMount::Other {
        unmount(mount_point, UnmountFlags::DETACH).context("cannot unmount the former folder")?;
    }
    fs::create_dir_all(mount_point)?;
    Ok(move_mount(mount, "", CWD, mount_point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

fn explain_mount(workspace: &Path, error: anyhow::Error) -> Problem {
    match error.downcast_ref::<Errno>().copied() {
        Some(Errno::INVAL) => refused(
            workspace,
            "its file system cannot show the files as another user's (id-mapped mounts), as a machine with a uid of its \
             own needs: use a local file system, or let an administrator set `run_as = \"developer\"` in [machine]",
        ),
        _ => Problem::new(Code::Internal, format!("cannot share {}: {error:#}", workspace.display())),
    }
}

fn explain_open(workspace: &Path, error: Errno) -> Problem {
    match error {
        Errno::NOENT => refused(workspace, "no such folder"),
        Errno::NOTDIR => refused(workspace, "not a folder"),
        Errno::ACCESS | Errno::PERM => {
            Problem::new(Code::Forbidden, format!("workspace {}: you may not read and write it", workspace.display()))
        }
        other => refused(workspace, &std::io::Error::from(other).to_string()),
    }
}

fn refused(workspace: &Path, why: &str) -> Problem {
    Problem::new(Code::Invalid, format!("workspace {}: {why}", workspace.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NOBODY: u32 = 65534;

    fn identity(uid: u32) -> Identity {
        Identity { uid, gid: uid, groups: Vec::new() }
    }

    fn said(uid: u32, path: &Path) -> String {
        open_as(&identity(uid), path).unwrap_err().detail
    }

    #[test]
    fn a_path_that_is_no_folder_is_named() {
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
            assert_eq!(open_as(&identity(NOBODY), dir.path()).is_ok(), allowed, "{bits:o}");
            assert!(open_as(&identity(0), dir.path()).is_ok());
        }
        mode(0o755);
        assert!(said(NOBODY, dir.path()).ends_with("you may not read and write it"));
        std::os::unix::fs::chown(dir.path(), Some(NOBODY), None).unwrap();
        assert!(open_as(&identity(NOBODY), dir.path()).is_ok());
        assert!(geteuid().is_root(), "the rights given up were the thread's alone");
    }

    #[test]
    fn a_group_that_may_write_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(dir.path(), Some(0), Some(4242)).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o770)).unwrap();
        let member = Identity { groups: vec![4242], ..identity(NOBODY) };
        assert!(open_as(&member, dir.path()).is_ok());
        assert!(open_as(&identity(NOBODY), dir.path()).is_err());
    }

    #[test]
    fn a_folder_stays_the_same_when_its_path_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, moved) = (dir.path().join("w"), dir.path().join("moved"));
        fs::create_dir(&folder).unwrap();
        let opened = open_as(&identity(geteuid().as_raw()), &folder).unwrap();
        fs::rename(&folder, &moved).unwrap();
        fs::create_dir(&folder).unwrap();
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        let ours = statx(&opened, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).unwrap();
        assert_eq!(ours.stx_ino, inode(&moved));
        assert_ne!(ours.stx_ino, inode(&folder));
    }
}
