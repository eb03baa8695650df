//! git and the workspace's owner.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

/// git refuses repositories of other owners. All files of a workspace have one owner, whichever user works on them, and
/// all of them belong to this developer. Only the system's configuration applies to every user, every git and `sudo`.
const TRUST: &str = "# The workspace has one owner, whichever user works on it.\n[safe]\n\tdirectory = *\n";

/// Adds a line to `/etc/gitconfig` of a container, so that git trusts its workspaces. `root` is the container's
/// `/proc/<pid>/root`; links that lead out of it are not followed.
pub(super) fn trust_workspaces(root: &Path) -> io::Result<()> {
    let root = rustix::fs::openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
    let file = rustix::fs::openat2(&root, "etc/gitconfig", flags, mode, ResolveFlags::IN_ROOT)?;
    File::from(file).write_all(TRUST.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_image_stay() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/gitconfig"), "[user]\n\tname = x\n").unwrap();
        trust_workspaces(root.path()).unwrap();
        let text = std::fs::read_to_string(root.path().join("etc/gitconfig")).unwrap();
        assert!(text.starts_with("[user]\n\tname = x\n") && text.ends_with("directory = *\n"), "{text}");
    }

    #[test]
    fn git_heeds_it_in_a_repository_of_another_owner() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        trust_workspaces(root.path()).unwrap();
        let git = |args: &[&str]| {
            let mut command = std::process::Command::new("git");
            command.args(args).current_dir(root.path()).env("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1");
            command.env("GIT_CONFIG_SYSTEM", root.path().join("etc/gitconfig")).output().expect("git is installed")
        };
        assert!(git(&["init", "-q"]).status.success());
        assert!(git(&["status"]).status.success(), "{:?}", git(&["status"]));
    }

    #[test]
    fn a_link_stays_inside() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/elsewhere", root.path().join("etc/gitconfig")).unwrap();
        trust_workspaces(root.path()).unwrap();
        assert!(root.path().join("etc/elsewhere").exists());
    }
}
