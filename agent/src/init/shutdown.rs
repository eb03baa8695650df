//! Ends a machine. Each step has a deadline: the machine powers off even if a step hangs.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::system::RebootCommand;

use super::children::Children;
use super::goal::Goal;

/// Time for the agent to stop all containers; podman allows each 10 s.
const CONTAINERS: Duration = Duration::from_secs(20);
/// Time for all other processes to end after SIGTERM.
const TERMINATE: Duration = Duration::from_secs(2);
/// The same if the agent did not stop the containers, for example because it hangs: the time that podman allows each
/// container.
const TERMINATE_CONTAINERS: Duration = Duration::from_secs(10);
/// Time for killed processes to end.
const KILL: Duration = Duration::from_secs(2);
/// Time to write everything back and unmount.
const UNMOUNT: Duration = Duration::from_secs(20);
/// Interval between two checks for remaining processes.
const LOOK: Duration = Duration::from_millis(10);

/// The first step: the agent stops the containers and exits.
pub(super) struct Ending {
    goal: Goal,
    deadline: Instant,
    stopped: bool,
}

impl Ending {
    /// Asks the agent to end.
    pub(super) fn begin(goal: Goal, now: Instant, children: &Children) -> Self {
        children.signal_agent(Signal::SIGTERM);
        Self { goal, deadline: now + CONTAINERS, stopped: false }
    }

    /// Notes that the agent has ended. `well`: its exit status says that it has stopped the containers.
    pub(super) fn agent_ended(&mut self, well: bool) {
        self.stopped = well;
    }

    /// Whether the agent has stopped the containers.
    pub(super) fn stopped(&self) -> bool {
        self.stopped
    }

    /// The action after the end.
    pub(super) fn goal(&self) -> Goal {
        self.goal
    }

    /// The deadline of this step.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether the agent has ended or has exceeded its time.
    pub(super) fn over(&self, now: Instant, children: &Children) -> bool {
        !children.has_agent() || self.deadline <= now
    }
}

/// Ends all processes, unmounts, and ends the machine. `stopped`: the agent has stopped the containers.
pub(super) fn now(goal: Goal, stopped: bool) -> ! {
    let all = Pid::from_raw(-1);
    let terminate = if stopped { TERMINATE } else { TERMINATE_CONTAINERS };
    for (signal, time) in [(Signal::SIGTERM, terminate), (Signal::SIGKILL, KILL)] {
        let _ = kill(all, signal);
        if reap_until(time, None) {
            break;
        }
    }
    // In a separate process, because a stuck disk must not block init.
    match super::program("/proc/self/exe").arg("unmount").spawn() {
        Ok(child) if reap_until(UNMOUNT, Some(Pid::from_raw(child.id() as i32))) => {}
        Ok(_) => super::say("the disks did not answer in time; leaving without them"),
        Err(error) => super::say(format_args!("cannot unmount: {error}")),
    }
    let command = match goal {
        Goal::PowerOff => RebootCommand::PowerOff,
        Goal::Restart => RebootCommand::Restart,
    };
    let result = rustix::system::reboot(command);
    // If PID 1 ends, the kernel panics, and the VMM notices this.
    panic!("garret-init: cannot {goal:?}: {result:?}");
}

/// Reaps processes until `awaited` (or every process) has ended; returns whether that happened in time.
fn reap_until(time: Duration, awaited: Option<Pid>) -> bool {
    let deadline = Instant::now() + time;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) if Instant::now() >= deadline => return false,
            Ok(WaitStatus::StillAlive) => std::thread::sleep(LOOK),
            Ok(status) if awaited.is_some() && status.pid() == awaited => return true,
            Ok(_) => {}
            // No children are left.
            Err(_) => return true,
        }
    }
}

/// Writes everything back and unmounts the mounts on the data disk. Runs as a separate process.
pub(crate) fn unmount() {
    for target in ["/workspaces", "/var/lib/containers", "/home", "/root", "/var"] {
        // Detached: a mount that is still in use also disappears before the disk does.
        let _ = rustix::mount::unmount(target, UnmountFlags::DETACH);
    }
    rustix::fs::sync();
    if let Err(error) = rustix::mount::unmount("/data", UnmountFlags::empty()) {
        // Still in use: a read-only remount leaves the file system as clean as an unmount.
        if rustix::mount::mount_remount("/data", MountFlags::RDONLY, "").is_err() {
            super::say(format_args!("cannot unmount /data: {error}"));
        }
    }
}
