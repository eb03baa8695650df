//! Files made in the guest belong to the developer on the host, and the workspace is a world of its own.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use garret_integration::stage::{ALICE, Workspace};

#[test]
fn files_of_root_and_of_vscode_are_the_developers_on_the_host() {
    let workspace = Workspace::shared(ALICE);
    workspace.up(&[]).ok();
    workspace
        .sh("touch by-vscode && sudo touch by-root && sudo mkdir folder-by-root && sudo chown 4242 by-root; true")
        .ok();
    for name in ["by-vscode", "by-root", "folder-by-root"] {
        let metadata = fs::metadata(workspace.path().join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (ALICE.uid, ALICE.uid), "{name}");
    }
    // And vscode sees them, and what the developer wrote on the host, as its own.
    workspace.write("by-host", "x");
    let out = workspace.sh("stat -c %u by-vscode by-root by-host; echo more >> by-host").ok();
    assert_eq!(out, "1000\n1000\n1000\n");
    assert_eq!(workspace.read("by-host"), "xmore\n");
}

#[test]
fn setuid_has_no_effect_on_the_host() {
    let workspace = Workspace::shared(ALICE);
    workspace.up(&[]).ok();
    workspace
        .sh("cp /bin/true planted; sudo chmod 6755 planted; sudo cp --preserve=mode /usr/bin/sudo planted2; true")
        .ok();
    for name in ["planted", "planted2"] {
        let metadata = fs::metadata(workspace.path().join(name)).unwrap();
        assert_eq!(metadata.uid(), ALICE.uid, "{name}");
        assert_eq!(metadata.permissions().mode() & 0o6000, 0, "{name} has a set-id bit");
    }
    assert_ne!(workspace.sh("sudo mknod device b 254 0").status, 0, "a device node was made");
    assert!(!workspace.path().join("device").exists());
}

#[test]
fn symlinks_and_dot_dot_do_not_leave_the_workspace() {
    let workspace = Workspace::shared(ALICE);
    let outside = workspace.path().parent().unwrap().join("outside-secret");
    fs::write(&outside, "the host's secret").unwrap();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o644)).unwrap();
    symlink(&outside, workspace.path().join("link")).unwrap();
    symlink("../outside-secret", workspace.path().join("relative")).unwrap();
    workspace.up(&[]).ok();
    let root = workspace.sh("echo $PWD").ok();
    for path in ["link", "relative", "../outside-secret", "../../outside-secret"] {
        let ran = workspace.sh(&format!("sudo cat {}/{path}", root.trim()));
        assert_ne!(ran.status, 0, "{path} led out: {}", ran.out());
    }
    // A link made in the guest to a host path shows the guest's file, never the host's.
    workspace.sh("ln -s /etc/hostname guest-link").ok();
    assert_ne!(workspace.sh("cat guest-link").ok(), fs::read_to_string("/etc/hostname").unwrap_or_default());
}

#[test]
fn git_does_not_complain_of_dubious_ownership() {
    let workspace = Workspace::shared(ALICE);
    workspace.up(&[]).ok();
    let commit = "git -c user.name=a -c user.email=a@b commit --allow-empty -qm first";
    workspace.sh(&format!("git init -q . && {commit} && git status --short && sudo git status --short")).ok();
    ALICE.run("git", &["-C", workspace.str(), "log", "--oneline"], &[], b"").ok();
}
