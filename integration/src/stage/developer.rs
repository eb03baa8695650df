//! Accounts of the host, and commands that run as one of them.

use super::Ran;
use std::fs;
use std::io::Write;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The driver's `load` in a guest, which takes memory and checks every byte.
pub const LOAD: &str = "/data/load";

/// The longest time of a command. A hung one must fail its test, not stop the run.
const DEADLINE_S: &str = "600";

/// An account of the host. The emulated host has these accounts; on bare metal `make test` creates them.
#[derive(Clone, Copy, Debug)]
pub struct Developer {
    pub name: &'static str,
    pub uid: u32,
}

pub const ALICE: Developer = Developer { name: "alice", uid: 1001 };
pub const BOB: Developer = Developer { name: "bob", uid: 1002 };
/// A third account, which the tests that use it create.
pub const CAROL: Developer = Developer { name: "carol", uid: 1003 };

impl Developer {
    /// Creates this account if it does not exist. A uid without an account has no machine.
    pub fn make_account(&self) {
        let known = Command::new("id").arg(self.name).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !known.expect("id(1) runs").success() {
            let made = Command::new("useradd").args(["-m", "-u", &self.uid.to_string(), self.name]).status();
            assert!(made.expect("useradd(8) runs").success(), "{}", self.name);
        }
    }

    /// Runs `garret ARGUMENTS` as this developer.
    pub fn garret(&self, arguments: &[&str]) -> Ran {
        self.garret_with(arguments, &[], b"")
    }

    /// The same with variables and standard input.
    pub fn garret_with(&self, arguments: &[&str], variables: &[(&str, &str)], input: &[u8]) -> Ran {
        self.run("garret", arguments, variables, input)
    }

    /// Runs any program as this developer.
    pub fn run(&self, program: &str, arguments: &[&str], variables: &[(&str, &str)], input: &[u8]) -> Ran {
        let mut child = self
            .command(program, arguments)
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("timeout(1) runs");
        let mut stdin = child.stdin.take().expect("piped");
        let input = input.to_owned();
        // A command that does not read its input may close it.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().expect("it ends");
        writer.join().expect("the writer ends");
        Ran {
            status: output.status.code().unwrap_or(-1),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// A program that runs as this developer, and is killed at the deadline.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", DEADLINE_S, program]).args(arguments);
        command.env("HOME", format!("/home/{}", self.name)).env("USER", self.name).current_dir("/");
        command.uid(self.uid).gid(self.uid);
        command
    }

    /// Copies the driver into this developer's machine as [`LOAD`], if it is missing.
    #[track_caller]
    pub fn put_load(&self) {
        let driver = std::env::var_os("GARRET_DRIVER").unwrap_or("/run/host/programs/garret-integration".into());
        let driver = fs::read(driver).expect("the driver is there");
        let put = format!("[ -x {LOAD} ] || {{ cat > {LOAD} && chmod 755 {LOAD} && sync; }}");
        self.garret_with(&["exec", "--machine", "--", "sh", "-c", &put], &[], &driver).ok();
    }

    /// Makes this developer the owner of a file or folder.
    pub fn own(&self, path: &Path) {
        chown(path, Some(self.uid), Some(self.uid)).expect("chown");
    }

    /// Runs a shell command in this developer's machine.
    pub fn guest(&self, line: &str) -> Ran {
        self.garret(&["exec", "--machine", "--", "sh", "-c", line])
    }

    /// Runs `garret --json ARGUMENTS`, and parses its output.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let out = self.garret(&[&["--json"], arguments].concat()).ok();
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }

    /// This developer's machine, as the API returns it.
    #[track_caller]
    pub fn machine(&self) -> serde_json::Value {
        let machines = self.json(&["show", "--machine"]);
        assert_eq!(machines["developer"], self.name, "{machines}");
        machines
    }

    /// The id of this developer's machine, which names its folders, control group and network namespace.
    #[track_caller]
    pub fn machine_id(&self) -> String {
        self.machine()["id"].as_str().expect("a text").to_owned()
    }

    /// The folder of the machine's sockets and logs.
    #[track_caller]
    pub fn run_folder(&self) -> PathBuf {
        Path::new("/run/garret/machines").join(self.machine_id())
    }

    /// The folder of the machine's data disk.
    #[track_caller]
    pub fn data_folder(&self) -> PathBuf {
        Path::new("/var/lib/garret/machines").join(self.machine_id())
    }
}
