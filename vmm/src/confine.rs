//! Landlock: the process reaches the files its configuration names, and nothing else of the file system.
//!
//! The process enters the rules before it opens the first file of the configuration, so they hold for every thread. The
//! kernel may not know some of the rights. Then the others still hold (the runner's jail has no other files anyway),
//! the log has a warning, and `GET /v1/machine` reports it.

use std::path::{Path, PathBuf};

use garret_api::vmm::{Landlock, MachineConfig};
use landlock::{
    ABI, Access, AccessFs, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
    path_beneath_rules,
};

/// The newest supported set of rights. Renames between folders (`refer`) need the second set.
const RIGHTS: ABI = ABI::V5;

/// Confines the calling thread and all threads that it creates later. `api`: the path of the API socket, if it has one.
pub(crate) fn confine(config: &MachineConfig, api: Option<&Path>) -> Result<Landlock, RulesetError> {
    let rules = rules(config, api);
    let mut ruleset = Ruleset::default().handle_access(AccessFs::from_all(RIGHTS))?.create()?;
    for (access, paths) in rules {
        // A path that does not exist gets no rule; the later open reports it.
        ruleset = ruleset.add_rules(path_beneath_rules(paths, access))?;
    }
    let landlock = reached(ruleset.restrict_self()?.ruleset);
    match landlock {
        Landlock::Enforced => {}
        Landlock::Partial => tracing::warn!("Landlock confines the VMM in part: the kernel is older than Linux 6.10"),
        Landlock::Absent => {
            tracing::warn!("Landlock does not confine the VMM: start Linux 5.13 or later with lsm=landlock");
        }
    }
    Ok(landlock)
}

fn reached(status: RulesetStatus) -> Landlock {
    match status {
        RulesetStatus::FullyEnforced => Landlock::Enforced,
        RulesetStatus::PartiallyEnforced => Landlock::Partial,
        RulesetStatus::NotEnforced => Landlock::Absent,
    }
}

fn rules(config: &MachineConfig, api: Option<&Path>) -> Vec<(BitFlags<AccessFs>, Vec<PathBuf>)> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = read | AccessFs::WriteFile | AccessFs::Truncate;
    let devices = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let own_folder = write | AccessFs::MakeReg | AccessFs::MakeSock | AccessFs::RemoveFile;
    // A guest makes no device nodes in a share, executes nothing on the host, and reaches no device behind one.
    let share = AccessFs::from_all(RIGHTS)
        & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev);
    let sockets = config.vsock.iter().filter_map(|vsock| vsock.socket.path()).chain(api);
    let made = sockets.chain(config.console.log.as_deref()).map(folder).collect();
    let images = std::iter::once(&config.kernel.image).chain(&config.root).cloned();
    vec![
        (read, images.chain(["/proc".into()]).collect()),
        (write, config.disks.iter().map(|disk| disk.path.clone()).collect()),
        (share, config.shares.iter().map(|share| share.path.clone()).collect()),
        (own_folder, made),
        (devices, ["/dev/kvm", "/dev/net/tun"].map(PathBuf::from).into()),
    ]
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => ".".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::ErrorKind;

    #[test]
    fn only_what_the_configuration_names_is_reachable() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        let path = move |name: &str| root.join(name);
        for name in ["vmlinux", "disk", "secret"] {
            fs::write(path(name), name).unwrap();
        }
        fs::create_dir_all(path("share/inner")).unwrap();
        fs::create_dir(path("run")).unwrap();
        let config = serde_json::json!({
            "vcpus": 1,
            "memory_mib": 64,
            "kernel": {"image": path("vmlinux")},
            "disks": [{"id": "d", "path": path("disk")}],
            "shares": [{"tag": "w", "path": path("share")}],
        });
        let config = serde_json::from_value(config).unwrap();
        // On a separate thread, because it cannot be undone.
        let confined = std::thread::spawn(move || {
            let landlock = confine(&config, Some(&path("run/api.sock"))).unwrap();
            assert_ne!(landlock, Landlock::Absent, "this host has no Landlock: the test needs it");
            assert_eq!(fs::read(path("vmlinux")).unwrap(), b"vmlinux");
            fs::write(path("disk"), "new").unwrap();
            fs::write(path("share/inner/file"), "").unwrap();
            fs::rename(path("share/inner/file"), path("share/file")).unwrap();
            fs::write(path("run/api.sock"), "").unwrap();
            for refused in [
                fs::read(path("secret")).err(),
                fs::write(path("vmlinux"), "").err(),
                fs::write(path("new"), "").err(),
                fs::remove_file(path("disk")).err(),
                fs::read("/etc/passwd").err(),
                fs::rename(path("share/file"), path("run/file")).err(),
            ] {
                // A rename between two sets of rights fails like one between two file systems.
                let kind = refused.map(|error| error.kind());
                assert!(matches!(kind, Some(ErrorKind::PermissionDenied | ErrorKind::CrossesDevices)), "{kind:?}");
            }
        });
        confined.join().unwrap();
    }
}
