//! A started process, in the guest or in a container: streams, terminal, signals and end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitStatus;

use garret_api::stream::{Outcome, WindowSize};
use garret_api::{Code, Problem};
use rustix::process::{Pid, Signal};
use rustix::termios::Winsize;
use tempfile::TempDir;
use tokio::net::unix::pipe;
use tokio::process::Child;

pub(super) struct Running {
    /// Its standard input: a pipe or its terminal.
    pub stdin: pipe::Sender,
    /// Its outputs, each with its channel byte.
    pub outputs: Vec<(u8, pipe::Receiver)>,
    /// To send signals and resize the terminal.
    pub handle: Handle,
    /// To wait for its end.
    pub child: Reaper,
}

/// Controls a running process.
pub(super) struct Handle {
    /// Its process group, in the guest's numbers.
    pub group: Pid,
    /// The master side of its terminal.
    pub terminal: Option<OwnedFd>,
}

impl Handle {
    /// Sends a signal to the process group. A group that no longer exists is no error; an invalid signal number is one.
    pub(super) fn signal(&self, number: i32) -> Result<(), Problem> {
        let signal = Signal::from_named_raw(number)
            .ok_or_else(|| Problem::new(Code::Invalid, format!("{number} is not a signal from 1 to 31")))?;
        match rustix::process::kill_process_group(self.group, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(Problem::new(Code::Internal, format!("cannot signal the process: {error}"))),
        }
    }

    /// Handles a lost connection: sends SIGHUP, and SIGCONT so that a stopped job receives it.
    pub(super) fn hang_up(&self) {
        for signal in [Signal::HUP, Signal::CONT] {
            let _ = rustix::process::kill_process_group(self.group, signal);
        }
    }

    /// Sets the terminal's size; does nothing without a terminal.
    pub(super) fn resize(&self, size: WindowSize) {
        if let Some(terminal) = &self.terminal {
            let _ = set_size(terminal, size);
        }
    }
}

/// Waits for a process, and holds what must exist as long as the process.
pub(super) struct Reaper {
    pub child: Child,
    /// Removed after the process has ended.
    pub _scratch: Option<TempDir>,
}

impl Reaper {
    pub(super) async fn wait(&mut self) -> Outcome {
        match self.child.wait().await {
            Ok(status) => outcome(status),
            Err(error) => Outcome::Failed(Problem::new(Code::Internal, format!("the process was lost: {error}"))),
        }
    }
}

fn outcome(status: ExitStatus) -> Outcome {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => Outcome::Exited(code as u8),
        (None, signal) => Outcome::Signaled(signal.unwrap_or(0)),
    }
}

pub(super) fn set_size(terminal: impl AsFd, size: WindowSize) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// The two directions of a terminal's master side.
///
/// They are not pipes, but tokio's pipe types (non-blocking read, write and readiness) also work for a terminal. A
/// hangup is read as `EIO`.
pub(super) fn terminal_streams(master: &OwnedFd) -> io::Result<(pipe::Sender, pipe::Receiver)> {
    let flags = rustix::fs::fcntl_getfl(master)?;
    rustix::fs::fcntl_setfl(master, flags | rustix::fs::OFlags::NONBLOCK)?;
    let sender = pipe::Sender::from_owned_fd_unchecked(master.try_clone()?)?;
    let receiver = pipe::Receiver::from_owned_fd_unchecked(master.try_clone()?)?;
    Ok((sender, receiver))
}
