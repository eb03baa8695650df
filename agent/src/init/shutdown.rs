//! The end of a machine, each step under a deadline: whatever hangs, it powers off.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::system::RebootCommand;

use super::children::Children;

/// For the agent to stop all containers; podman gives each 10 s.
const CONTAINERS: Duration = Duration::from_secs(20);
/// For everything else to heed SIGTERM.
const TERMINATE: Duration = Duration::from_secs(2);
/// The same when the agent did not stop the containers, as when it hangs: as much as podman gives each of them.
const TERMINATE_CONTAINERS: Duration = Duration::from_secs(10);
/// For the killed to go.
const KILL: Duration = Duration::from_secs(2);
/// To write everything back and unmount.
const UNMOUNT: Duration = Duration::from_secs(20);
/// Between two looks at what is left.
const LOOK: Duration = Duration::from_millis(10);

/// What comes after the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Off.
    PowerOff,
    /// A new start.
    Restart,
}

/// The first step: the agent stops the containers and ends.
pub struct Ending {
    goal: Goal,
    deadline: Instant,
    stopped: bool,
}

impl Ending {
    /// Asks the agent.
    pub fn begin(goal: Goal, now: Instant, children: &Children) -> Self {
        children.signal_agent(Signal::SIGTERM);
        Self { goal, deadline: now + CONTAINERS, stopped: false }
    }

    /// The agent has ended; `well` if it says so itself: then it has stopped the containers.
    pub fn agent_ended(&mut self, well: bool) {
        self.stopped = well;
    }

    /// Whether the agent has stopped the containers.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// What comes after.
    pub fn goal(&self) -> Goal {
        self.goal
    }

    /// When it is over at the latest.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether the agent has ended, or took too long.
    pub fn over(&self, now: Instant, children: &Children) -> bool {
        !children.has_agent() || self.deadline <= now
    }
}

/// Ends all processes, unmounts, and leaves. `stopped`: the agent has stopped the containers.
pub fn now(goal: Goal, stopped: bool) -> ! {
    let everybody = Pid::from_raw(-1);
    let terminate = if stopped { TERMINATE } else { TERMINATE_CONTAINERS };
    for (signal, time) in [(Signal::SIGTERM, terminate), (Signal::SIGKILL, KILL)] {
        kill(everybody, signal).ok();
        if reap_until(time, None) {
            break;
        }
    }
    // In a process of its own, for a stuck disk must not keep init from leaving.
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
    // A PID 1 that ends panics the kernel, which the VMM notices.
    panic!("garret-init: cannot {goal:?}: {result:?}");
}

/// Reaps until `awaited` (or everybody) is gone; whether that happened in time.
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

/// Writes everything back and unmounts what is on the data disk; run as a process of its own.
pub fn unmount() {
    for target in ["/workspaces", "/var/lib/containers", "/home", "/root", "/var"] {
        // Detached: what cannot be unmounted for lack of order still goes before the disk does.
        rustix::mount::unmount(target, UnmountFlags::DETACH).ok();
    }
    rustix::fs::sync();
    if let Err(error) = rustix::mount::unmount("/data", UnmountFlags::empty()) {
        // Still in use: read-only leaves it as clean as an unmount does.
        if rustix::mount::mount_remount("/data", MountFlags::RDONLY, "").is_err() {
            super::say(format_args!("cannot unmount /data: {error}"));
        }
    }
}
