//! PID 1: mounts, cgroups and settings, then one loop that reaps processes, keeps the agent running and ends the
//! machine.
//!
//! Single-threaded and without tokio: no part of it can wait for another part. Signals are the interface:
//!
//! | signal | from | meaning |
//! |---|---|---|
//! | `SIGCHLD` | kernel | reap |
//! | `SIGTERM` | the agent, and the kernel when the power button is pressed | power off |
//! | `SIGINT` | kernel (Ctrl-Alt-Del), or any process of root | restart the machine |
//!
//! | file | what |
//! |---|---|
//! | `mounts` | all mounts, except the debugfs of the memory loop |
//! | `disk` | the data disk: check, mount, grow |
//! | `clock` | the guest's clock follows the host's |
//! | `kernel` | sysctls, limits, cgroups |
//! | `promise` | the memory the machine was promised, and the kernel limits that follow it |
//! | `boot_tasks` | small programs that run during the boot: loopback, growing a file system |
//! | `supervisor` | when to start the agent again: pure |
//! | `goal` | what a signal asks for: power off or restart |
//! | `children` | the processes that the loop starts and reaps |
//! | `shutdown` | ends the machine |

mod boot_tasks;
mod children;
mod clock;
mod disk;
mod goal;
mod kernel;
mod mounts;
mod promise;
mod shutdown;
mod supervisor;

use std::process::Command;
use std::time::Instant;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use children::{Children, Ended};
use clock::Clock;
use goal::Goal;
use shutdown::Ending;
pub(crate) use shutdown::unmount;
use supervisor::Supervisor;

/// The variable with the filter of the agent's messages.
const LOG: &str = "GARRET_LOG";

/// Prints one line on the console.
fn say(what: impl std::fmt::Display) {
    eprintln!("garret-init: {what}");
}

/// A program with the environment of all processes in the guest: the kernel sets no `PATH` for PID 1. `GARRET_LOG` is on the
/// kernel's command line.
fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env_clear().env("HOME", "/root").env("LANG", "C.UTF-8");
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.envs(std::env::var_os(LOG).map(|filter| (LOG, filter)));
    command
}

/// Runs the machine; must be PID 1.
pub(crate) fn run() -> ! {
    let clock = match boot() {
        Ok(clock) => clock,
        Err(error) => {
            say(format_args!("cannot boot: {error:#}; powering off"));
            shutdown::now(Goal::PowerOff, true);
        }
    };
    let error = match serve(clock) {
        Ok(ending) => shutdown::now(ending.goal(), ending.stopped()),
        Err(error) => error,
    };
    say(format_args!("cannot continue: {error:#}; powering off"));
    shutdown::now(Goal::PowerOff, false)
}

/// Boots the guest. The clock comes before all steps that read the time.
fn boot() -> anyhow::Result<Option<Clock>> {
    mounts::early()?;
    let clock = Clock::open();
    kernel::set_rlimits();
    disk::mount()?;
    mounts::late()?;
    kernel::sysctls();
    if let Err(error) = kernel::follow_promise() {
        say(format_args!("some limits stay those of the memory at boot: {error:#}"));
    }
    kernel::cgroups()?;
    Ok(clock)
}

/// Runs the main loop until a signal asks for the end.
fn serve(mut clock: Option<Clock>) -> anyhow::Result<Ending> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        mask.add(signal);
    }
    // Block the signals so that they are queued: the kernel drops a signal to PID 1 that has no handler.
    mask.thread_block()?;
    let _ = rustix::system::reboot(rustix::system::RebootCommand::CadOff);
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut children = Children::new(signals);
    let mut supervisor = Supervisor::new(Instant::now());
    let mut boot_tasks = boot_tasks::all();
    let mut ending: Option<Ending> = None;
    loop {
        let now = Instant::now();
        if ending.is_none() && supervisor.due(now) {
            match children.start_agent() {
                Ok(()) => supervisor.started(now),
                Err(error) => {
                    say(format_args!("cannot start the agent: {error}"));
                    supervisor.died(now);
                }
            }
            // Start the boot tasks after the agent, not before it: the host waits only for the agent.
            boot_tasks.drain(..).for_each(|task| children.start_boot_task(task));
        }
        match ending.take_if(|ending| ending.over(now, &children)) {
            Some(ending) => return Ok(ending),
            None => clock.iter_mut().for_each(|clock| clock.follow(now)),
        }
        let deadline = match &ending {
            Some(ending) => Some(ending.deadline()),
            None => supervisor.deadline().into_iter().chain(clock.as_ref().map(Clock::deadline)).min(),
        };
        let requests = children.wait(deadline)?;
        for ended in children.reap() {
            match ended {
                Ended::Agent(how, well) => {
                    match &mut ending {
                        Some(ending) => ending.agent_ended(well),
                        None => say(format_args!("the agent ended ({how}) and is started again")),
                    }
                    supervisor.died(Instant::now());
                }
                Ended::BootTask(name, how) => say(format_args!("{name}: {how}")),
            }
        }
        if let (None, Some(goal)) = (&ending, requests) {
            ending = Some(Ending::begin(goal, Instant::now(), &children));
        }
    }
}
