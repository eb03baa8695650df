//! The processes that init starts and reaps.

use std::io;
use std::os::unix::process::CommandExt;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::boot_tasks::BootTask;
use super::goal::Goal;
use super::kernel;

/// The processes that init knows by name, and the signals about all processes.
pub(super) struct Children {
    signals: SignalFd,
    agent: Option<Pid>,
    boot_tasks: Vec<(Pid, &'static str)>,
}

/// A known process that ended. A boot task is reported only if it failed.
pub(super) enum Ended {
    /// The agent: how it ended, and whether it ended successfully.
    Agent(String, bool),
    /// A boot task, and how it ended.
    BootTask(&'static str, String),
}

impl Children {
    pub(super) fn new(signals: SignalFd) -> Self {
        Self { signals, agent: None, boot_tasks: Vec::new() }
    }

    /// Starts the agent in its own cgroup. No other process is in that cgroup, so the agent's death affects no other.
    pub(super) fn start_agent(&mut self) -> io::Result<()> {
        let child = super::program("/proc/self/exe").arg0("garret-agent").arg("agent").spawn()?;
        let pid = Pid::from_raw(child.id() as i32);
        if let Err(error) = kernel::enter_agent_cgroup(pid) {
            super::say(format_args!("the agent's cgroup: {error}"));
        }
        self.agent = Some(pid);
        Ok(())
    }

    /// Starts a boot task and does not wait for it.
    pub(super) fn start_boot_task(&mut self, mut task: BootTask) {
        match task.command.spawn() {
            Ok(child) => self.boot_tasks.push((Pid::from_raw(child.id() as i32), task.name)),
            Err(error) => super::say(format_args!("{}: {error}", task.name)),
        }
    }

    pub(super) fn has_agent(&self) -> bool {
        self.agent.is_some()
    }

    /// Signals the agent, if there is one.
    pub(super) fn signal_agent(&self, signal: Signal) {
        if let Some(agent) = self.agent {
            let _ = kill(agent, signal);
        }
    }

    /// Waits for signals, at most until `deadline`. Returns the goal that a signal asked for.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> io::Result<Option<Goal>> {
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        match rustix::event::poll(&mut [PollFd::new(&self.signals, PollFlags::IN)], timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut goal = None;
        while let Some(signal) = self.signals.read_signal()? {
            goal = match Signal::try_from(signal.ssi_signo as i32) {
                Ok(Signal::SIGTERM) => Some(Goal::PowerOff),
                Ok(Signal::SIGINT) => Some(Goal::Restart),
                _ => goal,
            };
        }
        Ok(goal)
    }

    /// Reaps every process that has ended: known ones and orphans.
    pub(super) fn reap(&mut self) -> Vec<Ended> {
        let mut ended = Vec::new();
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let (pid, how, failed) = match status {
                WaitStatus::Exited(pid, code) => (pid, format!("exit status {code}"), code != 0),
                WaitStatus::Signaled(pid, signal, _) => (pid, format!("killed by {signal}"), true),
                WaitStatus::StillAlive => break,
                _ => continue,
            };
            if self.agent == Some(pid) {
                self.agent = None;
                ended.push(Ended::Agent(how, !failed));
            } else if let Some(at) = self.boot_tasks.iter().position(|(task, _)| *task == pid) {
                let (_, name) = self.boot_tasks.swap_remove(at);
                ended.extend(failed.then_some(Ended::BootTask(name, how)));
            }
        }
        ended
    }
}
