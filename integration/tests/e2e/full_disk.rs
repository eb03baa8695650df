//! A data disk that is full, and one whose file's disk on the host is: both are reported in one line, what was acknowledged is
//! kept, and with space again all continues.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::records::{Files, ROUND};
use garret_integration::stage::{ALICE, BOB, Developer, Workspace, events, wait_until};

/// Fills the file system at `$0` with two files: nearly all at once, then what is left block by block.
const FILL: &str = "cd $0 && fallocate -l $(($(df --output=avail -B1 . | tail -n 1) - (16 << 20))) fill && ! cat /dev/zero 2>/dev/null >fill2";

#[test]
fn a_full_data_disk_is_told_and_with_room_again_all_goes_on() {
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
    ALICE.garret(&["stop", "--machine"]).ok();
    let after = writer.end();
    ALICE.garret(&["start", "--machine"]).ok();
    wait_until("the environment is ready again", 120, || files.0.environment()["status"]["phase"] == "ready");
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
    disk.fill();
    wait_until("the host's full disk is reported", 60, || told() > before);
    let log = fs::read_to_string(BOB.run_folder().join("vmm.log")).expect("the VMM's log");
    assert_eq!(log.matches("No space left on device").count(), 1, "{log}");
    // A disk that stops would serve no reads either.
    let pause = ["-sS", "-X", "POST", "http://vmm/v1/pause", "--unix-socket"];
    let socket = BOB.run_folder().join("api.sock");
    let refused = Command::new("curl").args(pause).arg(socket).output().expect("curl runs").stdout;
    assert!(String::from_utf8_lossy(&refused).contains("waits for space on the host"), "{refused:?}");

    disk.free();
    writer.wait_for_more();
    assert_eq!(told(), before + 1);
    BOB.garret(&["stop", "--machine"]).ok();
    BOB.garret(&["start", "--machine"]).ok();
    wait_until("the environment is ready again", 120, || files.0.environment()["status"]["phase"] == "ready");
    writer.end().is_in(&files.read());
}

/// Makes a machine that does not run, so that its id is known before its data disk is made.
fn put_machine(developer: Developer) {
    let url = format!("http://garret/v1/machines/{}", developer.uid);
    let request = ["-sS", "--fail", "-X", "PUT", "-H", "content-type: application/json", "-d", "{}", &url];
    let socket = ["--unix-socket", "/run/garret/garret.sock"];
    let output = Command::new("curl").args(request).args(socket).output().expect("curl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A small ext4 of the host.
struct SmallDisk {
    at: PathBuf,
    _image: tempfile::NamedTempFile,
}

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        let image = tempfile::NamedTempFile::new_in("/var/tmp").expect("a file");
        image.as_file().set_len(2 << 30).expect("it grows");
        fs::create_dir_all(at).expect("a folder");
        run("mkfs.ext4 -q -m 0 $0 && mount -o loop $0 $1", &[image.path(), at]);
        Self { at: at.to_owned(), _image: image }
    }

    fn fill(&self) {
        run(FILL, &[&self.at]);
    }

    fn free(&self) {
        run("rm $0/fill $0/fill2", &[&self.at]);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A test that failed may have left the machine.
        let _stopped = BOB.garret(&["stop", "--machine"]);
        run("umount $0", &[&self.at]);
        BOB.garret(&["rm", "--machine", "--yes"]).ok();
    }
}

fn run(line: &str, words: &[&Path]) {
    assert!(Command::new("bash").args(["-c", line]).args(words).status().expect("bash runs").success(), "{line}");
}
