//! A machine for a test: the real VMM, kernel and root image, with a shell command in place of the agent.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use garret_api::client::{Client, Error};
use garret_api::vmm::LastWords;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The longest wait of a test. A hung machine fails its test.
const DEADLINE: Duration = Duration::from_secs(120);

/// The folder of the installed files.
pub(crate) fn installed(name: &str) -> PathBuf {
    let folder = std::env::var_os("GARRET_LIB").map_or_else(|| "/usr/lib/garret".into(), PathBuf::from);
    folder.join(name)
}

/// A small machine whose init is a shell with `command`. /proc is mounted; nothing is written to disk.
pub(crate) fn config(command: &str) -> Value {
    json!({
        "vcpus": 1,
        "memory_mib": 256,
        "kernel": {
            "image": installed("vmlinux"),
            "cmdline": format!("quiet init=/bin/bash -- -c \"mount -t proc proc /proc; {command}\""),
        },
        "root": installed("root.erofs"),
    })
}

/// A machine with garret's own init, which runs `beside` in a shell after the agent has started.
pub(crate) fn init_beside(beside: &str) -> Value {
    init_beside_after("", beside)
}

/// The same, with `first` as the first command of init's process.
pub(crate) fn init_beside_after(first: &str, beside: &str) -> Value {
    // The brackets keep the pattern from matching the shell that searches.
    let agent = "until pgrep -f 'garret-agent [a]gent' >/dev/null; do sleep 0.1; done; echo the agent runs;";
    config(&format!("{first} ({agent} {beside}) & exec /usr/lib/garret/garret-agent"))
}

/// A running `garret-vmm` and its folder.
pub(crate) struct Machine {
    vmm: Child,
    folder: tempfile::TempDir,
}

/// How a machine ended.
pub(crate) struct End {
    pub status: i32,
    pub words: LastWords,
    pub stderr: String,
    pub console: String,
}

impl Machine {
    /// Starts a machine from `config`, with its console log and sockets in a folder of its own.
    pub(crate) fn start(config: Value) -> Self {
        Self::start_by(config, Command::new(installed("garret-vmm")))
    }

    /// The same by `command`, to which the VMM's arguments are added.
    pub(crate) fn start_by(mut config: Value, mut command: Command) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        config["console"] = json!({ "log": path("console.log") });
        fs::write(path("machine.json"), config.to_string()).expect("writable");
        command.arg("--config").arg(path("machine.json")).arg("--api").arg(path("api.sock"));
        command.arg("--last-words").arg(path("last-words"));
        let stderr = fs::File::create(path("stderr")).expect("writable");
        let vmm = command.stdin(Stdio::null()).stderr(stderr).spawn().expect("garret-vmm starts");
        Self { vmm, folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.vmm.id()
    }

    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("console.log")).unwrap_or_default()).into_owned()
    }

    /// Waits until the guest has printed `text` at least `times` times.
    pub(crate) fn wait_for(&mut self, text: &str, times: usize) {
        self.wait(text, |machine| machine.console().matches(text).count() >= times);
    }

    /// Waits until `condition` holds.
    pub(crate) fn wait(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let until = Instant::now() + DEADLINE;
        while !condition(self) {
            assert!(Instant::now() < until, "{what}: not in time; the console: {}", self.console());
            let ended = self.vmm.try_wait().expect("it can be waited for");
            assert!(ended.is_none() || condition(self), "{what}: the VMM ended: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        self.block_on(async |client| client.get(path).await).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    pub(crate) fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Error> {
        self.block_on(async |client| client.put(path, body).await)
    }

    pub(crate) fn post(&self, path: &str) {
        self.block_on(async |client| client.post(path).await).unwrap_or_else(|error| panic!("POST {path}: {error}"));
    }

    fn block_on<T>(&self, call: impl AsyncFnOnce(Client) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(call(Client::unix(self.path("api.sock"))))
    }

    fn stderr(&self) -> String {
        fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    /// Waits for the end. Only the requested files may remain.
    pub(crate) fn end(mut self) -> End {
        let until = Instant::now() + DEADLINE;
        let status = loop {
            match self.vmm.try_wait().expect("it can be waited for") {
                Some(status) => break status,
                None => assert!(Instant::now() < until, "it does not end; the console: {}", self.console()),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let words = fs::read(self.path("last-words")).expect("last words");
        let words = serde_json::from_slice(&words)
            .unwrap_or_else(|error| panic!("last words: {error}; status {status}; {}", self.stderr()));
        for left in ["api.sock", "vsock.sock"] {
            assert!(!Path::exists(&self.path(left)), "{left} is left behind");
        }
        End { status: status.code().unwrap_or(-1), words, stderr: self.stderr(), console: self.console() }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.vmm.kill();
        let _ = self.vmm.wait();
    }
}
