use std::io;
use std::os::unix::process::CommandExt;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::chores::Chore;
use super::kernel;
use super::shutdown::Goal;

/// The processes that init knows by name, and the signals about all processes.
pub struct Children {
    signals: SignalFd,
    agent: Option<Pid>,
    chores: Vec<(Pid, &'static str)>,
}

/// A known process that ended. A chore is reported only if it failed.
pub enum Died {
    /// The agent: how it ended, and whether it ended successfully.
    Agent(String, bool),
    /// A chore, and how it ended.
    Chore(&'static str, String),
}

impl Children {
    pub fn new(signals: SignalFd) -> Self {
        Self { signals, agent: None, chores: Vec::new() }
    }

    /// Starts the agent in its own cgroup. No other process is in that cgroup, so the agent's death affects no other.
    pub fn start_agent(&mut self) -> io::Result<()> {
        let child = super::program("/proc/self/exe").arg0("garret-agent").arg("agent").spawn()?;
        let pid = Pid::from_raw(child.id() as i32);
        if let Err(error) = kernel::enter_agent_cgroup(pid) {
            super::say(format_args!("the agent's cgroup: {error}"));
        }
        self.agent = Some(pid);
        Ok(())
    }

    /// Starts a chore and does not wait for it.
    pub fn start_chore(&mut self, mut chore: Chore) {
        match chore.command.spawn() {
            Ok(child) => self.chores.push((Pid::from_raw(child.id() as i32), chore.name)),
            Err(error) => super::say(format_args!("{}: {error}", chore.name)),
        }
    }

    /// Whether the agent is running.
    pub fn has_agent(&self) -> bool {
        self.agent.is_some()
    }

    /// Signals the agent, if there is one.
    pub fn signal_agent(&self, signal: Signal) {
        if let Some(agent) = self.agent {
            kill(agent, signal).ok();
        }
    }

    /// Waits for signals, at most until `deadline`. Returns the goal that a signal asked for.
    pub fn wait(&self, deadline: Option<Instant>) -> io::Result<Option<Goal>> {
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
    pub fn reap(&mut self) -> Vec<Died> {
        let mut died = Vec::new();
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let (pid, how, failed) = match status {
                WaitStatus::Exited(pid, code) => (pid, format!("exit status {code}"), code != 0),
                WaitStatus::Signaled(pid, signal, _) => (pid, format!("killed by {signal}"), true),
                WaitStatus::StillAlive => break,
                _ => continue,
            };
            if self.agent == Some(pid) {
                self.agent = None;
                died.push(Died::Agent(how, !failed));
            } else if let Some(at) = self.chores.iter().position(|(chore, _)| *chore == pid) {
                let (_, name) = self.chores.swap_remove(at);
                died.extend(failed.then_some(Died::Chore(name, how)));
            }
        }
        died
    }
}
