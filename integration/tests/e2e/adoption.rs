//! The runner of this tree takes over a machine that garret of an earlier commit has started: with that one's VMM, kernel,
//! root image and agent. `scripts/earlier.sh` names the commit, builds it, and says when it moves.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{UnmountFlags, unmount};
use toml::{Table, Value};

use garret_integration::stage::{ALICE, BOB, CONFIG, Workspace, end_daemon, events, start_daemon, wait_until};

const STATE: &str = "/var/lib/garret";
const ASIDE: &str = "/var/lib/garret.aside";

#[test]
fn machine_of_an_earlier_garret_is_adopted_and_restarts() {
    let host = Host::of_earlier();
    let workspace = Workspace::with_image(ALICE, "earlier", "");
    let boot = "cat /proc/sys/kernel/random/boot_id";
    ALICE
        .run(
            &host.earlier("usr/bin/garret"),
            &["up", workspace.str(), "--", "sh", "-c", &format!("echo kept > ~/kept; {boot} > boot")],
            &[],
            b"",
        )
        .ok();
    host.upgrade();

    let machine = ALICE.machine();
    assert_eq!(machine["phase"], "running", "{machine}");
    assert_eq!(machine["id"], ALICE.name, "its folders have this name");
    assert_eq!(file_of(vmm_program()), file_of(host.earlier("usr/lib/garret/garret-vmm")), "an earlier VMM was to run");
    assert_eq!(workspace.sh(boot).ok(), workspace.read("boot"), "the machine was started again");
    let listed = ALICE.json(&["ls"]);
    assert_eq!(listed["environments"].as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(workspace.environment()["status"]["phase"], "ready");
    // What changes a machine that runs, too.
    let beside = Workspace::with_image(ALICE, "beside", "");
    beside.up(&["sh", "-c", "echo from the container > made"]).ok();
    assert_eq!(beside.read("made"), "from the container\n");

    ALICE.garret(&["stop", "--machine"]).ok();
    let events = events();
    assert!(!events.contains("power-cut"), "it did not power off by itself: {events}");
    ALICE.garret(&["start", "--machine"]).ok();
    wait_until("the environment is ready again", 120, || workspace.environment()["status"]["phase"] == "ready");
    assert_eq!(file_of(vmm_program()), file_of("/usr/lib/garret/garret-vmm"), "this tree's VMM was to run");
    assert_eq!(workspace.sh("cat ~/kept").ok(), "kept\n");
}

/// Whatever names it, the same file.
fn file_of(path: impl AsRef<Path>) -> (u64, u64) {
    let metadata = fs::metadata(path).expect("it is there");
    (metadata.dev(), metadata.ino())
}

fn vmm_program() -> String {
    format!("/proc/{}/exe", ALICE.machine()["vmm_pid"])
}

/// The host while it has a state of its own for this test, first in the hands of the earlier garret.
struct Host {
    earlier: PathBuf,
    config: Option<Vec<u8>>,
}

impl Host {
    fn of_earlier() -> Self {
        let earlier = std::env::var_os("GARRET_EARLIER").map_or_else(|| "/run/host/earlier".into(), PathBuf::from);
        let host = Self { earlier, config: fs::read(CONFIG).ok() };
        for developer in [ALICE, BOB] {
            // There may be no machine yet.
            let _stopped = developer.garret(&["stop", "--machine"]);
        }
        end_daemon(10);
        // An earlier garret cannot remove folders that are mounts: it finds none, as after the host's boot.
        for machine in fs::read_dir("/run/garret/machines").into_iter().flatten() {
            let folder = machine.expect("a name").path();
            unmount(&folder, UnmountFlags::DETACH).expect("it is a mount");
            fs::remove_dir(folder).expect("nothing is below the mount");
        }
        fs::rename(STATE, ASIDE).expect("no daemon uses it");
        let text = String::from_utf8(host.config.clone().unwrap_or_default()).expect("UTF-8");
        let mut config: Table = text.parse().expect("the configuration is TOML");
        let artifacts =
            config.entry("artifacts").or_insert(Value::Table(Table::new())).as_table_mut().expect("a table");
        for (key, name) in [("vmm", "garret-vmm"), ("kernel", "vmlinux"), ("root", "root.erofs")] {
            artifacts.insert(key.into(), host.earlier(&format!("usr/lib/garret/{name}")).into());
        }
        fs::write(CONFIG, config.to_string()).expect("it is root's");
        let path = format!("{}:{}", host.earlier("usr/bin"), std::env::var("PATH").expect("a path"));
        assert!(Command::new("garret-daemon-start").env("PATH", path).status().expect("it runs").success());
        host
    }

    fn earlier(&self, name: &str) -> String {
        self.earlier.join(name).into_os_string().into_string().expect("UTF-8")
    }

    /// As an upgrade of the package does it: this tree's daemon follows the earlier one.
    fn upgrade(&self) {
        end_daemon(10);
        self.restore_config();
        start_daemon();
    }

    fn restore_config(&self) {
        match &self.config {
            Some(text) => fs::write(CONFIG, text).expect("it is root's"),
            None => drop(fs::remove_file(CONFIG)),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            ALICE.garret(&["rm", "--machine", "--yes"]).ok();
        }
        end_daemon(10);
        self.restore_config();
        fs::remove_dir_all(STATE).expect("no daemon uses it");
        fs::rename(ASIDE, STATE).expect("it was put there");
        start_daemon();
    }
}
