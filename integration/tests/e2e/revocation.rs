//! A workspace whose environment was removed is out of the machine's reach; where a guest keeps it, that is said. The machine
//! runs without Landlock, so that nothing of this rests on it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::vmm;
use garret_integration::stage::{ALICE, Workspace, events, kill_daemon, restart_daemon};

/// Binds a folder of the workspace in a mount namespace that no agent looks into.
const HOLD: &str =
    "setsid unshare -m sh -c 'mount --bind /workspaces/$0/folder /mnt && echo held && exec sleep 4242' $0";

const CONFIG: &str = ".devcontainer/devcontainer.json";

/// What the guest keeps.
#[derive(Clone, Copy, PartialEq)]
enum Held {
    Nothing,
    Workspace,
    /// The folder that was the workspace until it was deleted and made again.
    Former,
}

#[test]
fn a_removed_workspace_leaves_no_file_open_in_the_vmm() {
    let _host = HostWithoutLandlock::begin();
    let keeps = Workspace::shared(ALICE);
    keeps.up(&["true"]).ok();
    absent_landlock_is_reported();
    for held in [Held::Nothing, Held::Workspace, Held::Former] {
        let goes = Workspace::with_image(ALICE, "goes", "");
        goes.write("folder/file", "text");
        let files = files(goes.path());
        goes.up(&["sh", "-c", "find . -type f -exec cat {} + >/dev/null"]).ok();
        assert!(are_open(&files), "the VMM has no file of the workspace open: this test would find nothing");
        let id = goes.environment()["id"].as_str().unwrap().to_owned();
        if held != Held::Nothing {
            let hold = format!("{HOLD} > /run/held & until grep -q held /run/held; do sleep 0.1; done");
            ALICE.garret(&["exec", "--machine", "--", "sh", "-c", &hold, &id]).ok();
        }
        if held == Held::Former {
            let config = goes.read(CONFIG);
            fs::remove_dir_all(goes.str()).unwrap();
            goes.write(CONFIG, &config);
            ALICE.own(goes.str().as_ref());
            goes.up(&["true"]).ok();
        }
        let removed = ALICE.garret(&["rm", goes.str()]);
        let events = events();
        let said = events.lines().any(|line| line.contains(&id) && line.contains("workspace-held"));
        assert_eq!((said, are_open(&files)), (held != Held::Nothing, held != Held::Nothing), "{events}");
        assert_eq!(removed.stderr.contains("files of"), said, "{}", removed.stderr);
        removed.ok();
    }
    ALICE.garret(&["exec", "--machine", "--", "pkill", "-f", "sleep 4242"]).ok();
    keeps.exec(&["true"]).ok();
}

#[track_caller]
fn absent_landlock_is_reported() {
    assert_eq!(ALICE.machine()["landlock"], "absent");
    let shown = ALICE.garret(&["show", "--machine"]).ok();
    assert!(shown.contains("warning:") && shown.contains("Landlock does not confine the VMM"), "{shown}");
    for (log, said) in [
        ("/var/log/garret.log".into(), "Landlock does not confine the VMM entirely"),
        (ALICE.run_folder().join("vmm.log"), "Landlock does not confine the VMM"),
    ] {
        let log = String::from_utf8_lossy(&fs::read(log).unwrap()).into_owned();
        assert!(log.contains(said), "{log}");
    }
}

/// Device and number of a folder and of everything below it: the same through whatever mount.
fn files(folder: &Path) -> BTreeSet<(u64, u64)> {
    let mut found: BTreeSet<_> = [identity(folder)].into();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.append(&mut files(&path)) } else { found.extend([identity(&path)]) }
    }
    found
}

fn identity(path: &Path) -> (u64, u64) {
    let metadata = fs::metadata(path).unwrap();
    (metadata.dev(), metadata.ino())
}

/// Whether alice's VMM has one of these files open.
fn are_open(files: &BTreeSet<(u64, u64)>) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", vmm::pid(ALICE))).unwrap();
    // One that is closed meanwhile is gone.
    let open = descriptors.filter_map(|entry| fs::metadata(entry.unwrap().path()).ok());
    open.map(|metadata| (metadata.dev(), metadata.ino())).any(|file| files.contains(&file))
}

/// The daemon, and all VMMs that it starts, cannot use Landlock until this is dropped.
struct HostWithoutLandlock;

impl HostWithoutLandlock {
    fn begin() -> Self {
        // There may be no machine yet.
        let _stopped = ALICE.garret(&["stop", "--machine"]);
        kill_daemon();
        let start = ["-c", include_str!("without_landlock.py"), "garret-daemon-start"];
        assert!(Command::new("python3").args(start).status().expect("python3 runs").success());
        Self
    }
}

impl Drop for HostWithoutLandlock {
    fn drop(&mut self) {
        let _stopped = ALICE.garret(&["stop", "--machine"]);
        restart_daemon();
    }
}
