//! Starts a process in a running container by `crun exec`.
//!
//! The OCI runtime enters the container's namespaces and cgroup and applies its seccomp filter and limits, in a few
//! milliseconds. `podman exec` would add a database, a lock and a monitor process, and would lose signals. The runtime
//! stays as the process's parent and exits with the process's status (128 plus the number for a signal).

use std::io::IoSliceMut;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use garret_api::stream;
use garret_api::{Code, Problem};
use rustix::fs::{CWD, FileType, Mode};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Interest};
use tokio::net::unix::pipe;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};

use super::ProcessSpec;
use super::running::{Handle, Reaper, Running, set_size, terminal_streams};
use super::spawn::{Streams, start};
use crate::processes::descendants;

/// The runtime's state folder, in which podman lets it keep its containers.
const RUNTIME_ROOT: &str = "/run/crun";
/// The parent folder of each exec's files.
const SCRATCH: &str = "/run/garret";
const PREFIX: &str = "exec-";

/// Starts `spec` in container `id`.
pub(super) async fn spawn(id: &str, spec: &ProcessSpec) -> Result<Running, Problem> {
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Problem::new(Code::Internal, format!("{id:?} is not a container's id")));
    }
    let config = Path::new(RUNTIME_ROOT).join(id).join("config.json");
    let config = std::fs::read(&config)
        .map_err(|_| Problem::new(Code::Conflict, "the container is not running; bring the environment up first"))?;
    let config: Value = serde_json::from_slice(&config).map_err(|error| internal("the container's config", error))?;
    let files = Files::make(&process(&config["process"], spec)).map_err(|error| internal("a scratch folder", error))?;
    files.run(id, spec).await
}

/// Removes the files left by an agent that was killed.
pub(crate) fn clean_up() {
    let entries = std::fs::read_dir(SCRATCH).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes())) {
        let _ = std::fs::remove_dir_all(entry.path());
    }
}

/// The files that one call of the runtime needs.
struct Files {
    folder: tempfile::TempDir,
    /// The pid file is a FIFO, so that the pid arrives as an event.
    pid: pipe::Receiver,
    console: UnixListener,
}

impl Files {
    fn make(process: &Value) -> std::io::Result<Self> {
        std::fs::create_dir_all(SCRATCH)?;
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(SCRATCH)?;
        std::fs::write(folder.path().join("process.json"), process.to_string())?;
        let pid = folder.path().join("pid");
        rustix::fs::mknodat(CWD, &pid, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        // Open both directions: the runtime's open then does not block, and its close is not read as an end of file
        // before the pid.
        let pid = pipe::OpenOptions::new().read_write(true).open_receiver(pid)?;
        let console = UnixListener::bind(folder.path().join("console"))?;
        Ok(Self { folder, pid, console })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn run(self, id: &str, spec: &ProcessSpec) -> Result<Running, Problem> {
        let mut command = Command::new("crun");
        command.arg("--root").arg(RUNTIME_ROOT).arg("--log").arg(self.path("log")).arg("--log-format=json");
        command.arg("exec").arg("--process").arg(self.path("process.json")).arg("--pid-file").arg(self.path("pid"));
        let streams = if spec.terminal.is_some() {
            command.arg("--console-socket").arg(self.path("console"));
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            None
        } else {
            let streams = Streams::pipes().map_err(|error| internal("pipes", error))?;
            streams.attach(&mut command).map_err(|error| internal("pipes", error))?;
            Some(streams)
        };
        command.arg(id);
        let (child, _) = start(command, None).map_err(|error| internal("crun", error))?;
        let mut starting = KillOnDrop(Some(child));

        let Self { folder, pid, console } = self;
        let mut pid_line = BufReader::new(pid);
        let started = async {
            let master = match spec.terminal {
                Some(_) => Some(receive_terminal(&console).await?),
                None => None,
            };
            Ok::<_, std::io::Error>((master, read_pid(&mut pid_line).await?))
        };
        let (master, pid) = tokio::select! {
            started = started => started.map_err(|error| internal("the runtime's answer", error))?,
            // The runtime reports the pid before it waits for the process. If the runtime ends first, it has started
            // nothing.
            () = starting.ended() => return Err(failure(&folder.path().join("log"), &spec.args[0])),
        };
        let (stdin, outputs) = match (&master, streams) {
            (Some(master), _) => {
                if let Some(size) = spec.terminal {
                    set_size(master, size).map_err(|error| internal("the terminal", error))?;
                }
                let (stdin, stdout) = terminal_streams(master).map_err(|error| internal("the terminal", error))?;
                (stdin, vec![(stream::STDOUT, stdout)])
            }
            (None, Some(streams)) => (streams.stdin, streams.outputs),
            (None, None) => return Err(internal("the terminal", "the runtime made none")),
        };
        // The runtime makes the process a session leader or leaves it in its own session, so query the group.
        let group = rustix::process::getpgid(Some(pid)).unwrap_or(pid);
        let handle = Handle { group, terminal: master };
        let child = starting.0.take().ok_or_else(|| internal("crun", "it was lost"))?;
        Ok(Running { stdin, outputs, handle, child: Reaper { child, _scratch: Some(folder) } })
    }
}

/// A runtime that has not reported the pid yet. On drop it is killed with all processes it has started: in a paused
/// container it would never return.
struct KillOnDrop(Option<Child>);

impl KillOnDrop {
    async fn ended(&mut self) {
        match &mut self.0 {
            Some(child) => drop(child.wait().await),
            None => std::future::pending().await,
        }
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let Some(child) = &mut self.0 else { return };
        for pid in child.id().map(|id| descendants(id as i32)).unwrap_or_default() {
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        // Tokio reaps the process.
        let _ = child.start_kill();
    }
}

/// The process to run: the container's own process is the template (limits, capabilities, labels), and `spec` overrides
/// it.
fn process(pattern: &Value, spec: &ProcessSpec) -> Value {
    let mut process = pattern.clone();
    process["args"] = json!(spec.args);
    process["env"] = spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    process["cwd"] = json!(spec.cwd);
    process["terminal"] = json!(spec.terminal.is_some());
    let credentials = &spec.credentials;
    let same_user = pattern["user"]["uid"].as_u64() == Some(credentials.uid.into());
    let mut groups: Vec<Value> = credentials.groups.iter().map(|group| json!(group)).collect();
    if same_user && let Some(more) = pattern["user"]["additionalGids"].as_array() {
        groups
            .extend(more.iter().filter(|group| !credentials.groups.iter().any(|have| json!(have) == **group)).cloned());
    }
    process["user"]["uid"] = json!(credentials.uid);
    process["user"]["gid"] = json!(credentials.gid);
    process["user"]["additionalGids"] = Value::Array(groups);
    if !same_user && let Some(capabilities) = process["capabilities"].as_object_mut() {
        // Root gets all capabilities of the container. Other users get none, but can still gain them (sudo).
        let held = match credentials.uid {
            0 => capabilities.get("bounding").cloned().unwrap_or(json!([])),
            _ => json!([]),
        };
        capabilities.insert("effective".into(), held.clone());
        capabilities.insert("permitted".into(), held);
        capabilities.insert("inheritable".into(), json!([]));
        capabilities.insert("ambient".into(), json!([]));
    }
    process
}

async fn read_pid(fifo: &mut BufReader<pipe::Receiver>) -> std::io::Result<Pid> {
    let mut digits = String::new();
    loop {
        // The runtime writes the number in one write, without a newline.
        let bytes = fifo.fill_buf().await?;
        digits.push_str(&String::from_utf8_lossy(bytes));
        let length = bytes.len();
        fifo.consume(length);
        match digits.trim().parse().ok().and_then(Pid::from_raw) {
            Some(pid) => return Ok(pid),
            None if digits.len() > 32 => return Err(std::io::ErrorKind::InvalidData.into()),
            None => {}
        }
    }
}

/// Receives the master side of the container's new terminal over the console socket.
async fn receive_terminal(listener: &UnixListener) -> std::io::Result<OwnedFd> {
    let (connection, _) = listener.accept().await?;
    loop {
        connection.readable().await?;
        match connection.try_io(Interest::READABLE, || receive_fd(&connection)) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            received => return received,
        }
    }
}

fn receive_fd(connection: &UnixStream) -> std::io::Result<OwnedFd> {
    let mut name = [0; 256];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let slices = &mut [IoSliceMut::new(&mut name)];
    rustix::net::recvmsg(connection, slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(fd) = fds.next()
        {
            return Ok(fd);
        }
    }
    Err(std::io::ErrorKind::UnexpectedEof.into())
}

/// The error that the runtime logged when it could not start the process.
fn failure(log: &Path, program: &str) -> Problem {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    failure_of(&log, program)
}

fn failure_of(log: &str, program: &str) -> Problem {
    let message = log
        .lines()
        .rev()
        .find_map(|line| Some(serde_json::from_str::<Value>(line).ok()?.get("msg")?.as_str()?.to_owned()))
        .unwrap_or_else(|| "the container's runtime ended without a message".into());
    if message.contains("not found in $PATH") || (message.contains(program) && message.contains("No such file")) {
        return Problem::new(Code::NoSuchProgram, format!("{program}: no such program in the container"));
    }
    if message.contains("chdir to") {
        return Problem::new(
            Code::NotFound,
            format!("the folder to start in is not usable in the container: {message}"),
        );
    }
    if message.contains("Permission denied") || message.contains("not executable") {
        return Problem::new(Code::NotExecutable, format!("{program}: cannot be executed in the container"));
    }
    Problem::new(Code::Internal, format!("cannot start {program} in the container: {message}"))
}

fn internal(what: &str, error: impl std::fmt::Display) -> Problem {
    Problem::new(Code::Internal, format!("cannot start a process in the container: {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::Place;
    use super::*;
    use crate::users::Credentials;

    fn spec(uid: u32) -> ProcessSpec {
        ProcessSpec {
            place: Place::Container { id: "ab".into() },
            args: vec!["id".into()],
            env: BTreeMap::from([("A".into(), "b=c".into())]),
            cwd: "/work space".into(),
            credentials: Credentials { uid, gid: 7, groups: vec![27] },
            terminal: None,
        }
    }

    fn pattern() -> Value {
        json!({
            "args": ["sleep"], "env": ["OLD=1"], "cwd": "/", "terminal": true, "noNewPrivileges": true,
            "user": {"uid": 1000, "gid": 1000, "umask": 18, "additionalGids": [27, 999]},
            "capabilities": {"bounding": ["CAP_CHOWN"], "effective": ["CAP_X"], "permitted": ["CAP_X"], "ambient": ["CAP_X"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}],
        })
    }

    #[test]
    fn fields_missing_in_the_request_come_from_the_container() {
        let made = process(&pattern(), &spec(1000));
        assert_eq!(made["args"], json!(["id"]));
        assert_eq!(made["env"], json!(["A=b=c"]));
        assert_eq!(made["cwd"], json!("/work space"));
        assert_eq!((&made["terminal"], &made["noNewPrivileges"]), (&json!(false), &json!(true)));
        assert_eq!((&made["rlimits"], &made["user"]["umask"]), (&pattern()["rlimits"], &json!(18)));
        assert_eq!(made["user"]["additionalGids"], json!([27, 999]));
        assert_eq!(made["capabilities"], pattern()["capabilities"]);
    }

    #[test]
    fn another_user_gets_no_right_of_the_containers_user() {
        let made = process(&pattern(), &spec(5));
        assert_eq!(made["user"]["additionalGids"], json!([27]));
        for set in ["effective", "permitted", "inheritable", "ambient"] {
            assert_eq!(made["capabilities"][set], json!([]), "{set}");
        }
        assert_eq!(made["capabilities"]["bounding"], json!(["CAP_CHOWN"]));
    }

    #[test]
    fn root_gets_what_the_container_may_have_at_most() {
        let made = process(&pattern(), &spec(0));
        assert_eq!(made["capabilities"]["effective"], json!(["CAP_CHOWN"]));
        assert_eq!(made["capabilities"]["ambient"], json!([]));
    }

    #[test]
    fn the_runtimes_words_become_a_problem() {
        let log = r#"{"msg":"executable file `nosuch` not found in $PATH: No such file or directory","level":"error"}"#;
        assert_eq!(failure_of(log, "nosuch").code, Code::NoSuchProgram);
        assert_eq!(failure_of("", "x").code, Code::Internal);
        let cases = [
            ("open `/x`: Permission denied", Code::NotExecutable),
            ("the path `/x` exists but it is not executable: Operation not permitted", Code::NotExecutable),
            ("chdir to `/nosuch`: No such file or directory", Code::NotFound),
        ];
        for (message, code) in cases {
            assert_eq!(failure_of(&json!({"msg": message}).to_string(), "/x").code, code, "{message}");
        }
    }
}
