//! What every test uses: two developers, workspaces that belong to them, and the `garret` command run as them.

use std::fs;
use std::io::Write;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// A user of the host. The emulated host has these accounts; on bare metal `make test` makes them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Developer {
    pub name: &'static str,
    pub uid: u32,
}

pub(crate) const ALICE: Developer = Developer { name: "alice", uid: 1001 };
pub(crate) const BOB: Developer = Developer { name: "bob", uid: 1002 };
/// A third; the tests that use it make its account.
pub(crate) const CAROL: Developer = Developer { name: "carol", uid: 1003 };

/// The image most tests use; it comes through the host's registry mirror where the internet is not there.
pub(crate) const IMAGE: &str = "mcr.microsoft.com/devcontainers/base:debian";

/// The driver's `load` in a guest: takes memory and checks every byte of it.
pub(crate) const LOAD: &str = "/data/load";
/// The daemon's configuration.
pub(crate) const CONFIG: &str = "/etc/garret/config.toml";

/// No command takes longer on a host that works; a hung one must fail its test, not stop the run.
const DEADLINE_S: &str = "600";

/// What a command left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub status: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ran {
    /// Standard output as text.
    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Asserts success and gives standard output.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.status, 0, "stdout: {}\nstderr: {}", self.out(), self.stderr);
        self.out()
    }

    /// Asserts failure, and that the last line says all of `words`: one clear line.
    #[track_caller]
    pub(crate) fn fails_with(self, words: &[&str]) -> Self {
        assert_ne!(self.status, 0, "it should have failed; stdout: {}\nstderr: {}", self.out(), self.stderr);
        let last = self.stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        assert!(last.starts_with("garret: "), "the last line is not garret's: {}", self.stderr);
        for word in words {
            assert!(last.contains(word), "`{word}` is not in `{last}`; all of it: {}", self.stderr);
        }
        self
    }
}

impl Developer {
    /// Makes this user's account unless it is there: a uid without one has no machine.
    pub(crate) fn make_account(&self) {
        let known = Command::new("id").arg(self.name).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !known.expect("id(1) runs").success() {
            let made = Command::new("useradd").args(["-m", "-u", &self.uid.to_string(), self.name]).status();
            assert!(made.expect("useradd(8) runs").success(), "{}", self.name);
        }
    }

    /// `garret ARGUMENTS` as this developer.
    pub(crate) fn garret(&self, arguments: &[&str]) -> Ran {
        self.garret_with(arguments, &[], b"")
    }

    /// The same with variables and standard input.
    pub(crate) fn garret_with(&self, arguments: &[&str], variables: &[(&str, &str)], input: &[u8]) -> Ran {
        self.run("garret", arguments, variables, input)
    }

    /// Any program as this developer.
    pub(crate) fn run(&self, program: &str, arguments: &[&str], variables: &[(&str, &str)], input: &[u8]) -> Ran {
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
        // A command that does not read its input may close it early.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().expect("it ends");
        writer.join().expect("the writer ends");
        Ran {
            status: output.status.code().unwrap_or(-1),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// A program that is this developer's, and ends at the deadline.
    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", DEADLINE_S, program]).args(arguments);
        command.env("HOME", format!("/home/{}", self.name)).env("USER", self.name).current_dir("/");
        command.uid(self.uid).gid(self.uid);
        command
    }

    /// Copies the driver into this developer's machine as [`LOAD`], unless it is there.
    #[track_caller]
    pub(crate) fn put_load(&self) {
        let driver = std::env::var_os("GARRET_DRIVER").unwrap_or("/run/host/programs/garret-integration".into());
        let driver = fs::read(driver).expect("the driver is there");
        let put = format!("[ -x {LOAD} ] || {{ cat > {LOAD} && chmod 755 {LOAD} && sync; }}");
        self.garret_with(&["exec", "--machine", "--", "sh", "-c", &put], &[], &driver).ok();
    }

    /// Gives this developer a file or folder.
    pub(crate) fn own(&self, path: &Path) {
        chown(path, Some(self.uid), Some(self.uid)).expect("chown");
    }

    /// A shell line in this developer's machine.
    pub(crate) fn guest(&self, line: &str) -> Ran {
        self.garret(&["exec", "--machine", "--", "sh", "-c", line])
    }

    /// `garret --json ARGUMENTS`, parsed.
    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let out = self.garret(&[&["--json"], arguments].concat()).ok();
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }

    /// This developer's machine, as the API shows it.
    #[track_caller]
    pub(crate) fn machine(&self) -> serde_json::Value {
        let machines = self.json(&["show", "--machine"]);
        assert_eq!(machines["developer"], self.name, "{machines}");
        machines
    }
}

/// All events that the host keeps of its developers, one JSON object in each line.
pub(crate) fn events() -> String {
    let address = ["--unix-socket", "/run/garret/garret.sock", "http://garret/v1/events?after=0"];
    let output = Command::new("curl").args(["-sS", "--max-time", "30"]).args(address).output().expect("curl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A workspace folder of a developer.
pub(crate) struct Workspace {
    developer: Developer,
    path: PathBuf,
    /// What is removed at the end, with the environment; `None`: both stay.
    folder: Option<tempfile::TempDir>,
}

impl Workspace {
    /// An empty folder named `name`.
    pub(crate) fn new(developer: Developer, name: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("garret-e2e-").tempdir_in("/var/tmp").expect("a folder");
        let path = folder.path().join(name);
        fs::create_dir(&path).expect("a folder");
        for path in [folder.path(), &path] {
            developer.own(path);
        }
        Self { developer, path, folder: Some(folder) }
    }

    /// A workspace that all tests of a developer share: [`IMAGE`] and no other property. Its container stays up between
    /// tests, so a test must leave the container unchanged. The folder is empty otherwise.
    pub(crate) fn shared(developer: Developer) -> Self {
        let folder = PathBuf::from(format!("/var/tmp/garret-e2e-{}", developer.name));
        let path = folder.join("shared");
        fs::create_dir_all(&path).expect("a folder");
        for entry in fs::read_dir(&path).expect("a folder") {
            let path = entry.expect("a name").path();
            if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
                .expect("it is removed");
        }
        for path in [&folder, &path] {
            developer.own(path);
        }
        let workspace = Self { developer, path, folder: None };
        workspace.write(".devcontainer/devcontainer.json", &config_of_image(""));
        workspace
    }

    /// A folder with a `.devcontainer/devcontainer.json` of this text.
    pub(crate) fn with_config(developer: Developer, name: &str, config: &str) -> Self {
        let workspace = Self::new(developer, name);
        workspace.write(".devcontainer/devcontainer.json", config);
        workspace
    }

    /// A folder whose devcontainer is [`IMAGE`] and these further properties (each with a comma before it). With none, the
    /// user's environment is not looked for either: the login shell takes seconds under emulation.
    pub(crate) fn with_image(developer: Developer, name: &str, properties: &str) -> Self {
        Self::with_config(developer, name, &config_of_image(properties))
    }

    /// Writes a file of the developer's.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path.join(name);
        let parent = path.parent().expect("it has one");
        if !parent.exists() {
            fs::create_dir_all(parent).expect("a folder");
            self.developer.own(parent);
        }
        fs::write(&path, text).expect("it writes");
        self.developer.own(&path);
    }

    /// Reads a file.
    #[track_caller]
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(crate) fn developer(&self) -> Developer {
        self.developer
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn str(&self) -> &str {
        self.path.to_str().expect("UTF-8")
    }

    /// `garret up` of this folder, with a command if it has words.
    pub(crate) fn up(&self, command: &[&str]) -> Ran {
        let mut arguments = vec!["up", self.str()];
        if !command.is_empty() {
            arguments.push("--");
            arguments.extend(command);
        }
        self.developer.garret(&arguments)
    }

    /// `garret exec` in this folder's environment.
    pub(crate) fn exec(&self, command: &[&str]) -> Ran {
        self.developer.garret(&[&["exec", self.str(), "--"], command].concat())
    }

    /// A shell line in this folder's environment.
    pub(crate) fn sh(&self, line: &str) -> Ran {
        self.exec(&["sh", "-c", line])
    }

    /// The environment, as the API shows it.
    #[track_caller]
    pub(crate) fn environment(&self) -> serde_json::Value {
        self.developer.json(&["show", self.str()])
    }

    /// The address of this developer's machine on the machines' network.
    pub(crate) fn developer_machine_address(&self) -> String {
        let line = "ip -4 -o addr show dev eth0";
        let out = self.developer.guest(line).ok();
        out.split_whitespace().nth(3).and_then(|field| field.split('/').next()).expect("an address").to_owned()
    }
}

fn config_of_image(properties: &str) -> String {
    let properties = if properties.is_empty() { r#", "userEnvProbe": "none""# } else { properties };
    format!("{{ \"image\": \"{IMAGE}\"{properties} }}")
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if self.folder.is_some() {
            // A test that failed may have left no environment; its own message is the one that counts.
            let _may_be_gone = self.developer.garret(&["rm", self.str()]);
        }
    }
}

/// Limits on waiting are for an idle machine; others are up to three times slower.
pub(crate) const SLOWER: u32 = 3;

/// Waits until `condition` holds, looking ten times a second; fails the test after `seconds`, times [`SLOWER`].
#[track_caller]
pub(crate) fn wait_until(what: &str, seconds: u32, mut condition: impl FnMut() -> bool) {
    for _ in 0..seconds * SLOWER * 10 {
        if condition() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("{what}: not within {} s", seconds * SLOWER);
}

/// SIGKILL.
pub(crate) fn kill(pid: u64) {
    send(pid, Signal::KILL);
}

/// Any signal.
pub(crate) fn send(pid: u64, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

/// The process id of the daemon.
pub(crate) fn daemon_pid() -> u64 {
    let found = Command::new("pgrep").args(["-o", "-f", "garret daemon$"]).output().expect("pgrep runs");
    String::from_utf8(found.stdout).expect("a number").trim().parse().expect("one daemon")
}

/// Starts the daemon, the way the host's own service does it.
pub(crate) fn start_daemon() {
    let status = Command::new("garret-daemon-start").status().expect("the host's own start script");
    assert!(status.success());
}

/// Ends the daemon as a service manager does; `seconds` may pass.
pub(crate) fn end_daemon(seconds: u32) {
    let pid = daemon_pid();
    send(pid, Signal::TERM);
    wait_for_end("the daemon", pid, seconds);
}

/// Waits until there is no such process.
fn wait_for_end(what: &str, pid: u64, seconds: u32) {
    wait_until(&format!("{what} is gone"), seconds, || !Path::new(&format!("/proc/{pid}")).exists());
}

pub(crate) fn kill_daemon() {
    let pid = daemon_pid();
    kill(pid);
    wait_for_end("the daemon", pid, 10);
}

/// Kills the daemon and starts it again.
pub(crate) fn restart_daemon() {
    kill_daemon();
    start_daemon();
}
