//! Starts a process in the guest: in its own session, in the cgroup for interactive use, as its user.
#![allow(unsafe_code, reason = "code between fork and exec")]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use garret_api::stream::{self, WindowSize};
use garret_api::{Code, Problem};
use nix::sys::signal::{SigHandler, Signal, signal};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Gid, Pid, Uid};
use rustix::pty::OpenptFlags;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use super::ProcessSpec;
use super::running::{Handle, Reaper, Running, set_size, terminal_streams};
use crate::blocking::Blocking;
use crate::users::Credentials;

/// The cgroup of interactive processes, separate from the agent's.
const CGROUP: &str = "/sys/fs/cgroup/garret/exec/cgroup.procs";

/// Checking the folder to start in, which may be in a workspace.
static FOLDER: Blocking = Blocking::new("looking at the folder to start in", 16, Duration::from_secs(30));

/// Starts `spec` in the guest.
pub(super) async fn spawn(spec: &ProcessSpec) -> Result<Running, Problem> {
    let folder = spec.cwd.clone();
    if !FOLDER.run(move || folder.is_dir()).await? {
        return Err(Problem::new(Code::NotFound, format!("there is no folder {:?} to start in", spec.cwd)));
    }
    let mut command = Command::new(&spec.args[0]);
    command.args(&spec.args[1..]).env_clear().envs(&spec.env).current_dir(&spec.cwd);
    let streams = match spec.terminal {
        Some(size) => Streams::terminal(size),
        None => Streams::pipes(),
    };
    let internal = |error: io::Error| Problem::new(Code::Internal, format!("cannot start a process: {error}"));
    let streams = streams.map_err(internal)?;
    let (child, pid) = streams.attach(&mut command).and_then(|()| start(command, Some(spec))).map_err(|error| {
        let program = &spec.args[0];
        match error.kind() {
            io::ErrorKind::NotFound => Problem::new(Code::NoSuchProgram, format!("{program}: no such program")),
            io::ErrorKind::PermissionDenied => {
                Problem::new(Code::NotExecutable, format!("{program}: cannot be executed"))
            }
            _ => Problem::new(Code::Internal, format!("{program}: {error}")),
        }
    })?;
    Ok(Running {
        stdin: streams.stdin,
        outputs: streams.outputs,
        handle: Handle { group: pid, terminal: streams.master },
        child: Reaper { child, _scratch: None },
    })
}

/// The agent's ends of a process's streams, and the process's ends.
pub(super) struct Streams {
    pub stdin: pipe::Sender,
    pub outputs: Vec<(u8, pipe::Receiver)>,
    pub master: Option<OwnedFd>,
    theirs: [OwnedFd; 3],
}

impl Streams {
    /// Three pipes.
    pub(super) fn pipes() -> io::Result<Self> {
        let (their_stdin, stdin) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (stdout, their_stdout) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, their_stderr) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        Ok(Self {
            stdin: pipe::Sender::from_owned_fd(stdin)?,
            outputs: vec![
                (stream::STDOUT, pipe::Receiver::from_owned_fd(stdout)?),
                (stream::STDERR, pipe::Receiver::from_owned_fd(stderr)?),
            ],
            master: None,
            theirs: [their_stdin, their_stdout, their_stderr],
        })
    }

    fn terminal(size: WindowSize) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::unlockpt(&master)?;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        set_size(&master, size)?;
        let (stdin, stdout) = terminal_streams(&master)?;
        let theirs = [slave.try_clone()?, slave.try_clone()?, slave];
        Ok(Self { stdin, outputs: vec![(stream::STDOUT, stdout)], master: Some(master), theirs })
    }

    /// Passes the process's ends to `command`. The agent must not keep them open, or it never sees the end of the
    /// output: the caller drops `command` and `self.theirs` before it reads.
    pub(super) fn attach(&self, command: &mut Command) -> io::Result<()> {
        let [stdin, stdout, stderr] = &self.theirs;
        command.stdin(Stdio::from(stdin.try_clone()?));
        command.stdout(Stdio::from(stdout.try_clone()?));
        command.stderr(Stdio::from(stderr.try_clone()?));
        Ok(())
    }
}

/// Starts `command` as the leader of a new session and process group. With `spec`, also sets its terminal and identity.
pub(super) fn start(mut command: Command, spec: Option<&ProcessSpec>) -> io::Result<(Child, Pid)> {
    let cgroup = open_cgroup(Path::new(CGROUP));
    let terminal = spec.is_some_and(|spec| spec.terminal.is_some());
    let identity = spec.map(|spec| Identity::new(&spec.credentials));
    let prepare = move || {
        reset_signals()?;
        reset_oom_score();
        rustix::process::setsid()?;
        if terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        if let Some(cgroup) = &cgroup {
            rustix::io::write(cgroup, b"0")?;
        }
        if let Some(identity) = &identity {
            identity.apply()?;
        }
        // Last, because a change of identity clears this setting. When the agent is killed, the process gets a hangup,
        // as after a lost connection.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::HUP))?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes raw system calls on values it owns and allocates nothing.
    unsafe { command.pre_exec(prepare) };
    let child = command.spawn()?;
    let pid = child.id().and_then(|id| Pid::from_raw(id as i32)).ok_or(io::ErrorKind::NotFound)?;
    Ok((child, pid))
}

/// Allows the kernel to kill `command` for lack of memory. The agent itself is exempt, and its children would inherit
/// the exemption.
pub(crate) fn allow_oom_kill(command: &mut Command) {
    let prepare = || {
        reset_oom_score();
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes raw system calls and allocates nothing.
    unsafe { command.pre_exec(prepare) };
}

/// The kernel asks `command` to end when the agent dies: the next agent starts the work again.
pub(crate) fn end_with_agent(command: &mut Command) {
    let prepare = || Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?);
    // SAFETY: between fork and exec the closure makes one raw system call and allocates nothing.
    unsafe { command.pre_exec(prepare) };
}

/// Runs in the single thread after a fork. The write may fail if the agent has no exemption (tests on a plain host).
fn reset_oom_score() {
    if let Ok(file) = rustix::fs::open(c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        let _ = rustix::io::write(file, b"0");
    }
}

/// A process's children inherit the ignored signals. The program that started the agent may have made it ignore SIGHUP
/// (`nohup`) or SIGINT (a shell's `&`). The standard library resets only the blocked signals.
fn reset_signals() -> io::Result<()> {
    for number in Signal::iterator().filter(|signal| !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the default action runs no code of ours.
        unsafe { signal(number, SigHandler::SigDfl) }?;
    }
    Ok(())
}

/// Init creates the guest's cgroups; elsewhere (tests on a plain host) there are none.
fn open_cgroup(path: &Path) -> Option<OwnedFd> {
    OpenOptions::new().write(true).open(path).ok().map(OwnedFd::from)
}

struct Identity {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    change: bool,
}

impl Identity {
    fn new(credentials: &Credentials) -> Self {
        Self {
            uid: Uid::from_raw(credentials.uid),
            gid: Gid::from_raw(credentials.gid),
            groups: credentials.groups.iter().copied().map(Gid::from_raw).collect(),
            change: rustix::process::geteuid().is_root(),
        }
    }

    /// Runs in the single thread after a fork. Sets the groups first, because changing the user removes the right to do
    /// it.
    fn apply(&self) -> rustix::io::Result<()> {
        if self.change {
            rustix::thread::set_thread_groups(&self.groups)?;
            rustix::thread::set_thread_res_gid(self.gid, self.gid, self.gid)?;
            rustix::thread::set_thread_res_uid(self.uid, self.uid, self.uid)?;
        }
        Ok(())
    }
}
