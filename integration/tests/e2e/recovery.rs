//! A machine that loses its power keeps what was synced, and one that does not boot is tried again until it does.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::settings::{Settings, table};
use crate::vmm::power_cuts;
use garret_integration::stage::{ALICE, Workspace, wait_until};

/// Process 1 of the guest, which gets both the agent's request and the power button's signal, does not run any more.
const IGNORE_EVERY_REQUEST: &str =
    "mkdir /sys/fs/cgroup/frozen && cd /sys/fs/cgroup/frozen && echo 1 >cgroup.procs && echo 1 >cgroup.freeze";
const STOP_DEADLINE_S: u32 = 4;

#[test]
fn a_machine_without_power_or_kernel_comes_back_with_its_data() {
    let workspace = Workspace::shared(ALICE);
    workspace.up(&[]).ok();
    ALICE.guest(&format!("echo kept >/data/synced && sync /data/synced && {IGNORE_EVERY_REQUEST}")).ok();
    let folder = tempfile::tempdir_in("/var/tmp").expect("a folder");
    let kernel = folder.path().join("vmlinux");
    fs::write(&kernel, "not a kernel").expect("it writes");
    let _settings = Settings::change(|config| {
        table(config, "machine").insert("stop_deadline_s".into(), STOP_DEADLINE_S.into());
        table(config, "artifacts").insert("kernel".into(), kernel.to_str().expect("UTF-8").into());
    });

    let (cuts, presses, begun) = (power_cuts(), button_presses(), Instant::now());
    let stopped = ALICE.garret(&["stop", "--machine"]);
    assert!(begun.elapsed() >= Duration::from_secs(STOP_DEADLINE_S.into()), "{:?}", begun.elapsed());
    assert!(stopped.stderr.contains("its power is cut"), "{}", stopped.stderr);
    stopped.ok();
    assert_eq!((power_cuts(), ALICE.machine()["phase"].as_str()), (cuts + 1, Some("stopped")));
    assert!(button_presses() > presses, "the power button was left out");

    ALICE.garret(&["start", "--machine"]).fails_with(&["the machine did not start", "the VMM failed"]);
    let mended = folder.path().join("mended");
    fs::copy("/usr/lib/garret/vmlinux", &mended).expect("it is there");
    fs::rename(&mended, &kernel).expect("the same folder");
    // Nothing is requested any more.
    wait_until("the machine runs", 60, || ALICE.machine()["phase"] == "running");
    assert_eq!(ALICE.guest("cat /data/synced").ok(), "kept\n");
}

/// How often the daemon has pressed a power button.
fn button_presses() -> usize {
    let log = fs::read(Path::new("/var/log/garret.log")).expect("the daemon's log");
    String::from_utf8_lossy(&log).matches("pressing the power button").count()
}
