//! A machine's VMM, without the daemon between.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use garret_integration::stage::{Developer, events};

/// One write to memory.reclaim; the kernel tries each as a whole.
const PIECE: &[u8] = b"64M";
/// More than any machine of these tests holds.
const PIECES_MAX: usize = 128;

/// The process id of the developer's VMM.
#[track_caller]
pub(crate) fn pid(developer: Developer) -> u64 {
    developer.machine()["vmm_pid"].as_u64().expect("a running machine")
}

/// The answer of the VMM with this run folder to a request of root's.
#[track_caller]
pub(crate) fn ask(run_folder: &Path, method: &str, path: &str) -> String {
    let socket = run_folder.join("api.sock");
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "30", "-X", method, &format!("http://vmm{path}"), "--unix-socket"])
        .arg(socket)
        .output()
        .expect("curl runs");
    assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Swaps out what the machine holds; returns the bytes that are in swap then.
#[track_caller]
pub(crate) fn swap_out(developer: Developer) -> u64 {
    let group = PathBuf::from("/sys/fs/cgroup/garret").join(developer.machine_id());
    for _ in 0..PIECES_MAX {
        let written =
            File::options().write(true).open(group.join("memory.reclaim")).and_then(|mut file| file.write_all(PIECE));
        match written {
            Ok(()) => {}
            // There is no more.
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("memory.reclaim: {error}"),
        }
    }
    let swapped = fs::read_to_string(group.join("memory.swap.current")).expect("the kernel counts it");
    swapped.trim().parse().expect("a number")
}

/// How often the power of some machine was cut.
pub(crate) fn power_cuts() -> usize {
    events().matches("\"power-cut\"").count()
}

pub(crate) fn exists(pid: u64) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}
