//! The folder of a machine's sockets and logs is a small file system of its own. What a VMM writes there takes no room
//! from other machines or from the host.

use std::fs;
use std::io::ErrorKind;

use anyhow::Context;
use rustix::mount::{MountFlags, mount};

use super::MachinePaths;
use super::workspaces::{detach, is_mount_point};

/// Room for the logs, each of which an honest VMM limits, and for a mount point per workspace. Only root has access.
const OPTIONS: &std::ffi::CStr = c"mode=700,size=32m,nr_inodes=1024";

/// Creates the folder unless it exists.
///
/// # Errors
/// It cannot be mounted.
pub(super) fn make(paths: &MachinePaths) -> anyhow::Result<()> {
    let folder = &paths.run;
    if folder.exists() && is_mount_point(folder)? {
        return Ok(());
    }
    // Earlier versions used a plain folder.
    remove(paths)?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    mount("garret", folder, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, Some(OPTIONS))
        .with_context(|| format!("cannot mount {}", folder.display()))
}

/// Removes the folder of a machine that was cleaned up. It never removes what is below `workspaces`: after a late
/// mount, those would be a developer's files.
///
/// # Errors
/// A workspace is still there, or a file cannot be removed.
pub(crate) fn remove(paths: &MachinePaths) -> anyhow::Result<()> {
    let entries = match fs::read_dir(&paths.run) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", paths.run.display())),
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let removed = match entry.file_type()?.is_dir() {
            true if path == paths.workspaces() => fs::remove_dir(&path),
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    // A lazy unmount, because a process that reads a log has it open.
    detach(&paths.run)?;
    fs::remove_dir(&paths.run).with_context(|| format!("cannot remove {}", paths.run.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_full_machine_folder_leaves_room_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let [paths, other] = ["m", "other"].map(|id| MachinePaths::new(dir.path(), id.parse().unwrap()));
        for paths in [&paths, &other] {
            make(paths).unwrap();
        }
        let mut file = fs::File::create(paths.vmm_log()).unwrap();
        let full = std::iter::repeat_with(|| file.write_all(&[1; 1 << 20])).take(64).find_map(Result::err).unwrap();
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        fs::write(other.vmm_log(), "text").unwrap();
        // The second call changes nothing.
        make(&paths).unwrap();
        assert!(fs::metadata(paths.vmm_log()).unwrap().len() > 0);
        for paths in [&paths, &other] {
            remove(paths).unwrap();
            assert!(!paths.run.exists());
        }
    }

    #[test]
    fn the_folder_of_an_earlier_garret_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let paths = MachinePaths::new(dir.path(), "m".parse().unwrap());
        fs::create_dir_all(paths.vm()).unwrap();
        make(&paths).unwrap();
        assert!(is_mount_point(&paths.run).unwrap() && !paths.vm().exists());
        remove(&paths).unwrap();
        assert!(!paths.run.exists());
    }

    #[test]
    fn a_workspace_that_is_still_there_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let paths = MachinePaths::new(dir.path(), "m".parse().unwrap());
        remove(&paths).unwrap();
        fs::create_dir_all(paths.workspace("late")).unwrap();
        fs::create_dir_all(paths.vm().join("below")).unwrap();
        fs::write(paths.workspace("late").join("file"), "").unwrap();
        let error = remove(&paths).unwrap_err().to_string();
        assert!(error.contains("workspaces"), "{error}");
        assert!(paths.workspace("late").join("file").exists());
        fs::remove_dir_all(paths.workspace("late")).unwrap();
        remove(&paths).unwrap();
        assert!(!paths.run.exists());
    }
}
