//! A data disk that is full, and one whose file's disk on the host is: both are reported in one line, what was acknowledged is
//! kept, and with space again all continues. With the disk of the state full, everything can be stopped and removed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FallocateFlags, fallocate};

use crate::records::{Files, ROUND};
use crate::vmm;
use garret_integration::stage::{ALICE, BOB, Developer, Workspace, events, restart_daemon, wait_until};

const STATE: &str = "/var/lib/garret";

/// Fills the file system at `$0` with two files: nearly all at once, then what is left block by block.
const FILL: &str = "cd $0 && fallocate -l $(($(df --output=avail -B1 . | tail -n 1) - (16 << 20))) fill && ! cat /dev/zero 2>/dev/null >fill2";

#[test]
fn a_full_data_disk_is_reported_and_room_lets_all_continue() {
    let files = Files::up(ALICE, "data-disk");
    let other = Workspace::with_config(ALICE, "pulled", r#"{ "image": "docker.io/library/busybox:latest" }"#);
    let in_the_machine = |line: &str| ALICE.garret(&["exec", "--machine", "--", "sh", "-c", line, "/data"]).ok();
    let writer = files.write_from(0);
    writer.wait_for_enough();
    in_the_machine(FILL);
    let before = writer.end();
    assert!(
        ["No space left", "disk is full"].iter().any(|words| before.complaints.contains(words)),
        "{}",
        before.complaints
    );
    other.up(&["true"]).fails_with(&["data disk is full", "free space"]);

    in_the_machine("rm $0/fill $0/fill2");
    other.up(&["true"]).ok();
    let writer = files.write_from(ROUND);
    writer.wait_for_enough();
    files.0.sh("pkill python3").ok();
    let after = writer.end();
    // What is read comes from the disk.
    in_the_machine("echo 3 >/proc/sys/vm/drop_caches");
    let found = files.read();
    before.is_in(&found);
    after.is_in(&found);
}

#[test]
fn a_full_disk_of_the_host_is_reported_once_and_writes_wait() {
    // Whatever machine bob has: the next one's data disk is on a file system of its own.
    let _none = BOB.garret(&["rm", "--machine", "--yes"]);
    put_machine(BOB);
    let disk = SmallDisk::mount(&BOB.data_folder());
    let files = Files::up(BOB, "host-disk");
    let told = || events().matches("host-disk\"").count();
    let before = told();
    let writer = files.write_from(0);
    writer.wait_for_enough();
    let full = Full::fill(&disk.at);
    wait_until("the host's full disk is reported", 60, || told() > before);
    let log = fs::read_to_string(BOB.run_folder().join("vmm.log")).expect("the VMM's log");
    assert_eq!(log.matches("No space left on device").count(), 1, "{log}");
    // A disk that stops would serve no reads either.
    let refused = vmm::ask(&BOB.run_folder(), "POST", "/v1/pause");
    assert!(refused.contains("waits for space on the host"), "{refused}");

    drop(full);
    writer.wait_for_more();
    assert_eq!(told(), before + 1);
    BOB.garret(&["stop", "--machine"]).ok();
    BOB.garret(&["start", "--machine"]).ok();
    wait_until("the environment is ready again", 120, || files.0.environment()["status"]["phase"] == "ready");
    writer.end().is_in(&files.read());

    everything_ends_on_a_full_disk(&files, disk);
}

/// Makes a machine that does not run, so that its id is known before its data disk is made.
fn put_machine(developer: Developer) {
    let url = format!("http://garret/v1/machines/{}", developer.uid);
    let request = ["-sS", "--fail", "-X", "PUT", "-H", "content-type: application/json", "-d", "{}", &url];
    let socket = ["--unix-socket", "/run/garret/garret.sock"];
    let output = Command::new("curl").args(request).args(socket).output().expect("curl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The other disk is full, which has the state; the machine's own has room.
fn everything_ends_on_a_full_disk(files: &Files, disk: SmallDisk) {
    let full = Full::fill(Path::new(STATE));
    for order in [["stop", files.0.str()], ["rm", files.0.str()], ["stop", "--machine"]] {
        full.assert();
        BOB.garret(&order).ok();
    }
    // The next daemon finds the same room.
    restart_daemon();
    assert_eq!(BOB.machine()["phase"], "stopped");
    assert!(!BOB.json(&["ls"]).to_string().contains("host-disk"));
    // The machine's folder is removed with it. An open file keeps its blocks: the disk below stays full.
    let _blocks = disk.image.reopen().expect("it is there");
    drop(disk);
    full.assert();
    BOB.garret(&["rm", "--machine", "--yes"]).ok();
    assert_eq!(BOB.json(&["ls"])["machines"], serde_json::json!([]));
}

/// A small ext4 of the host, with blocks of its own: it does not matter to it whether the disk below is full.
struct SmallDisk {
    at: PathBuf,
    image: tempfile::NamedTempFile,
}

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        let image = tempfile::NamedTempFile::new_in("/var/tmp").expect("a file");
        fallocate(image.as_file(), FallocateFlags::empty(), 0, 2 << 30).expect("there is room");
        fs::create_dir_all(at).expect("a folder");
        run("mkfs.ext4 -q -m 0 -E nodiscard $0 && mount -o loop $0 $1", &[image.path(), at]);
        Self { at: at.to_owned(), image }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A test that failed may have left the machine running.
        let _stopped = BOB.garret(&["stop", "--machine"]);
        run("umount $0", &[&self.at]);
        if std::thread::panicking() {
            let _gone = BOB.garret(&["rm", "--machine", "--yes"]);
        }
    }
}

/// A file system without space, until this is dropped.
struct Full(PathBuf);

impl Full {
    fn fill(folder: &Path) -> Self {
        let full = Self(folder.to_owned());
        run(FILL, &[folder]);
        full
    }

    /// Nothing has become free meanwhile.
    #[track_caller]
    fn assert(&self) {
        let probe = self.0.join("probe");
        let written = fs::write(&probe, [1; 1 << 16]).map_err(|error| error.kind());
        fs::remove_file(&probe).expect("an empty file takes no block");
        assert_eq!(written, Err(ErrorKind::StorageFull));
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        run("rm -f $0/fill $0/fill2", &[&self.0]);
    }
}

fn run(line: &str, words: &[&Path]) {
    assert!(Command::new("bash").args(["-c", line]).args(words).status().expect("bash runs").success(), "{line}");
}
