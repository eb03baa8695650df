//! A machine that the state does not know any more is stopped in order, not cut off.

use std::fs;
use std::path::{Path, PathBuf};

use garret_integration::stage::{ALICE, Workspace, kill_daemon, start_daemon, wait_until};

/// Moves the state, and what SQLite keeps beside it.
fn move_state(from: &Path, to: &Path) {
    for beside in ["", "-wal", "-shm"] {
        let path = |folder: &Path| PathBuf::from(format!("{}/state.db{beside}", folder.display()));
        if path(from).exists() {
            fs::rename(path(from), path(to)).unwrap();
        }
    }
}

#[test]
fn a_machine_that_no_state_knows_of_powers_off() {
    let workspace = Workspace::with_image(ALICE, "swept", "");
    workspace.up(&["true"]).ok();
    // What the guest has written but not synced reaches the disk only by a power-off in order.
    let write = "echo kept > /var/lib/unsynced && echo 1000000 > /proc/sys/vm/dirty_expire_centisecs";
    ALICE.guest(write).ok();
    let pid = ALICE.machine()["vmm_pid"].as_u64().unwrap();
    let state = Path::new("/var/lib/garret");
    let kept = tempfile::tempdir_in(state).unwrap();
    kill_daemon();
    move_state(state, kept.path());
    start_daemon();
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "the machine still runs");
    kill_daemon();
    move_state(kept.path(), state);
    start_daemon();
    ALICE.garret(&["start", "--machine"]).ok();
    wait_until("the environment is ready again", 120, || workspace.environment()["status"]["phase"] == "ready");
    let found = ALICE.garret(&["exec", "--machine", "--", "cat", "/var/lib/unsynced"]).ok();
    assert_eq!(found, "kept\n");
}
