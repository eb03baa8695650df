//! The emulated host: QEMU emulates a machine with AMD-V, on which garret and its guests run as on bare metal. The host
//! may hang at any time, so every wait here has a deadline.

mod boot_files;
mod emulator;
mod tsc;

use anyhow::{Context, bail};
use emulator::{Emulator, Event};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until, timeout};

/// How long a host may take to start. It takes seconds; this allows for a busy machine.
const UP_WITHIN: Duration = Duration::from_secs(120);
/// The most hosts to start. Rarely the emulator itself loses an interrupt, and the host hangs.
const ATTEMPTS: u32 = 3;
/// The longest time without a report. A host reports every 2 s of its own time. Rarely the emulator hangs during a
/// command, too.
const SILENT_AT_MOST: Duration = Duration::from_secs(180);
/// The time from the command's end until the emulator has ended.
const DOWN_WITHIN: Duration = Duration::from_secs(10);
/// The status if the host failed, not the command: a number that commands seldom use, as in `env(1)`.
pub(crate) const STATUS_HOST_FAILED: u8 = 125;
/// The status after the deadline, as in `timeout(1)`.
const STATUS_DEADLINE: u8 = 124;
const STATUS_INTERRUPTED: u8 = 130;

/// How to boot the emulated host, and what to run there.
#[derive(clap::Args, Clone)]
pub(crate) struct Options {
    /// Folder of this machine to share, at the same path inside (and as /share); the command runs in it
    #[arg(long, value_name = "FOLDER")]
    pub share: Option<PathBuf>,
    /// Let machines run as their developers, so that workspaces can lie in SHARE (which has no id-mapped mounts)
    #[arg(long)]
    pub run_as_developer: bool,
    /// Run the command as this account instead of root. The host creates it with the name in USER
    #[arg(long = "as", value_name = "UID:GID", value_parser = account)]
    pub account: Option<(u32, u32)>,
    /// Give up after this many seconds
    #[arg(long, value_name = "SECONDS", env = "DEADLINE", default_value_t = 1800)]
    pub deadline: u64,
    /// Memory of the host in MiB
    #[arg(long, value_name = "MIB", env = "MEMORY", default_value_t = 8192)]
    pub memory: u32,
    /// Swap of the host in MiB, on a disk of its own
    #[arg(long, value_name = "MIB", env = "SWAP", default_value_t = 4096)]
    pub swap: u32,
    /// One CPU, one instruction per virtual nanosecond: figures that repeat, and a several times slower emulation
    #[arg(long)]
    pub icount: bool,
    /// Do not install garret
    #[arg(long)]
    pub bare: bool,
    /// The command may run more than once: if its host fails, another host runs it from the beginning
    #[arg(long)]
    pub repeatable: bool,
    /// Install garret but do not start its runner
    #[arg(long)]
    pub no_runner: bool,
    /// New machines have the base image already, so it is not pulled
    #[arg(long)]
    pub preloaded: bool,
    /// Provide garret of an earlier commit, in /run/host/earlier
    #[arg(long)]
    pub earlier: bool,
    /// Provide more programs, in /run/host/programs
    #[arg(long = "program", value_name = "FILE")]
    pub programs: Vec<PathBuf>,
    /// Keep the logs (console, runner, registry) in this folder
    #[arg(long, value_name = "FOLDER", env = "LOGS")]
    pub logs: Option<PathBuf>,
    /// Give the command this terminal
    #[arg(long)]
    pub terminal: bool,
    /// The command, for `bash -c`; without one, a shell on this terminal
    pub command: Option<String>,
}

impl Options {
    fn interactive(&self) -> bool {
        self.terminal || self.command.is_none()
    }
}

/// `UID:GID`
fn account(text: &str) -> Result<(u32, u32), String> {
    let ids = text.split_once(':').and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
    ids.ok_or_else(|| format!("{text:?} is not UID:GID"))
}

enum Outcome {
    /// The command ended with this status.
    Ended(u8),
    /// The host failed.
    Failed { begun: Begun, why: String },
}

/// Whether the command has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    No,
    Yes,
}

/// The action after a failure of the host.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Repeat,
    /// The command may have had effects.
    RefuseToRepeat,
    GiveUp,
}

fn after_failure(begun: Begun, repeatable: bool, attempt: u32) -> Next {
    match begun {
        Begun::Yes if !repeatable => Next::RefuseToRepeat,
        _ if attempt >= ATTEMPTS => Next::GiveUp,
        _ => Next::Repeat,
    }
}

/// Boots a host and runs the command of `options` in it. The exit code is the command's. If a host fails, it starts
/// another one. A command that had begun runs again only if it is repeatable.
pub(crate) async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    if options.interactive() && !std::io::stdin().is_terminal() {
        bail!("a shell needs a terminal: give a command (make host CMD='…')");
    }
    let mut signals = Signals::new()?;
    let mut attempt = 1;
    loop {
        let (begun, why) = match boot(options, &mut signals).await? {
            Outcome::Ended(status) => return Ok(ExitCode::from(status)),
            Outcome::Failed { begun, why } => (begun, why),
        };
        match after_failure(begun, options.repeatable, attempt) {
            Next::Repeat => {
                eprintln!("emulated host: {why}; starting another (attempt {attempt} of {ATTEMPTS} failed)");
            }
            Next::RefuseToRepeat => bail!(
                "the emulated host failed after the command had begun: {why}. The command may have had effects, so it does not \
                 run again by itself: run it again if that is safe"
            ),
            Next::GiveUp => {
                bail!("the emulated host failed {ATTEMPTS} times: {why}; `--logs FOLDER` keeps its console")
            }
        }
        attempt += 1;
    }
}

async fn boot(options: &Options, signals: &mut Signals) -> anyhow::Result<Outcome> {
    let files = boot_files::prepare(options).context("preparing the emulated host")?;
    let mut emulator = Emulator::start(options, &files).context("starting the emulator")?;
    let outcome = watch(&mut emulator, options, signals).await;
    if matches!(outcome, Ok(Outcome::Failed { .. })) {
        // An emulator that has ended has no monitor.
        let _ = emulator.examine(&files).await;
    }
    emulator.kill().await;
    if let Some(folder) = &options.logs {
        files.keep_logs(folder)?;
    }
    if matches!(outcome, Err(_) | Ok(Outcome::Failed { .. })) {
        eprint!("{}", files.last_lines());
    }
    outcome
}

async fn watch(emulator: &mut Emulator, options: &Options, signals: &mut Signals) -> anyhow::Result<Outcome> {
    let mut limit = Instant::now() + UP_WITHIN;
    let mut begun = Begun::No;
    let mut heard = Instant::now();
    loop {
        let event = tokio::select! {
            event = emulator.next() => event?,
            () = sleep_until(limit) => match begun {
                Begun::Yes => {
                    eprintln!("emulated host: the command had not ended after {} s", options.deadline);
                    return Ok(Outcome::Ended(STATUS_DEADLINE));
                }
                Begun::No => return Ok(Outcome::Failed { begun, why: format!("not up after {} s", UP_WITHIN.as_secs()) }),
            },
            () = sleep_until(heard + SILENT_AT_MOST), if begun == Begun::Yes => {
                let why = format!("it hangs: no report for {} s", SILENT_AT_MOST.as_secs());
                return Ok(Outcome::Failed { begun, why });
            }
            () = signals.any() => return Ok(Outcome::Ended(STATUS_INTERRUPTED)),
        };
        heard = Instant::now();
        match event {
            Event::Alive => {}
            Event::Up => {
                begun = Begun::Yes;
                limit = Instant::now() + Duration::from_secs(options.deadline);
            }
            Event::Status(status) => {
                // All output is copied when the emulator has ended. A host that hangs while it ends has printed
                // everything.
                let _ = timeout(DOWN_WITHIN, emulator.ended()).await;
                return Ok(Outcome::Ended(status));
            }
            Event::Gone => return Ok(Outcome::Failed { begun, why: "the emulator ended".into() }),
        }
    }
}

/// The reasons to end this program from outside.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?]))
    }

    async fn any(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_begun_command_runs_again_only_if_repeatable() {
        for (begun, repeatable, attempt, next) in [
            (Begun::No, false, 1, Next::Repeat),
            (Begun::No, true, 1, Next::Repeat),
            (Begun::No, false, ATTEMPTS, Next::GiveUp),
            (Begun::Yes, false, 1, Next::RefuseToRepeat),
            (Begun::Yes, false, ATTEMPTS, Next::RefuseToRepeat),
            (Begun::Yes, true, 1, Next::Repeat),
            (Begun::Yes, true, ATTEMPTS, Next::GiveUp),
        ] {
            assert_eq!(after_failure(begun, repeatable, attempt), next, "{begun:?} {repeatable} {attempt}");
        }
    }
}
