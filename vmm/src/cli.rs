//! The command line, and one machine from its start to its end.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use garret_api::vmm::{ExitReason, LastWords, SocketAt};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

use crate::api_server::ApiServer;
use crate::control::Events;
use crate::driver;
use crate::last_words::LastWordsFile;
use crate::machine::Machine;
use crate::seccomp::Role;
use crate::signals::EndingSignals;
use crate::{config, confine, thread};

/// Runs one virtual machine until it ends. Exit status: 0 the guest powered off or the end was requested, 1 failure,
/// 2 wrong usage, 3 the guest wants to start again, 4 the guest's kernel panicked.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<SelfTest>,
    #[command(flatten)]
    run: Option<Run>,
}

#[derive(Args)]
struct Run {
    /// The machine's configuration, JSON
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Where to serve the machine's API: a path, or `fd:N` for an inherited descriptor of a bound Unix stream socket
    #[arg(long, value_name = "SOCKET")]
    api: SocketAt,
    /// Where to write why the machine ended
    #[arg(long, value_name = "FILE")]
    last_words: Option<PathBuf>,
}

#[derive(Subcommand)]
enum SelfTest {
    /// Enters a thread role's filter and makes a call it forbids
    #[command(hide = true)]
    SeccompTest {
        /// The thread role
        role: Role,
    },
}

/// Runs the process. Its status is that of [`ExitReason`].
pub fn main() -> ExitCode {
    let began = Instant::now();
    thread::share_heap();
    // Other processes of this uid must not read this one's memory; `execve` has reset this setting.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        eprintln!("garret-vmm: PR_SET_DUMPABLE: {error}");
        return ExitCode::FAILURE;
    }
    let cli = Cli::parse();
    if let Some(SelfTest::SeccompTest { role }) = cli.command {
        return seccomp_test(role);
    }
    let Some(run) = cli.run else { return ExitCode::from(2) };
    let last_words = match LastWordsFile::open(run.last_words.as_deref()) {
        Ok(last_words) => last_words,
        Err(error) => {
            eprintln!("garret-vmm: last words {}: {error}", run.last_words.unwrap_or_default().display());
            return ExitCode::FAILURE;
        }
    };
    let words = run_machine(&run, began)
        .unwrap_or_else(|error| LastWords { reason: ExitReason::Failed, message: one_line(&error) });
    last_words.write(words.reason, &words.message);
    ExitCode::from(words.reason.status())
}

/// The error and its causes on one line. A cause whose text is already on the line is left out.
fn one_line(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |line, cause| match line.as_str() {
        "" => cause,
        line_so_far if line_so_far.contains(&cause) => line,
        _ => format!("{line}: {cause}"),
    })
}

fn run_machine(run: &Run, began: Instant) -> anyhow::Result<LastWords> {
    limit_output();
    raise_descriptor_limit();
    let config = config::load(&run.config)?;
    let signals = EndingSignals::block().context("cannot block signals")?;
    let landlock = confine::confine(&config, run.api.path()).context("cannot confine the process (Landlock)")?;

    let (events, receiver) = Events::channel();
    signals.spawn(events.clone()).context("cannot wait for signals")?;
    let mut machine = Machine::assemble(&config, landlock, &events)?;
    let api = ApiServer::spawn(run.api.clone(), events).with_context(|| format!("API socket {}", run.api))?;
    Role::Main.enter()?;

    machine.start(began);
    let words = driver::drive(machine, &receiver);
    api.end();
    Ok(words)
}

/// Sets up logging to standard error. Lines that a guest can cause are limited where they are logged. The lines of
/// virtiofsd and virtio-queue are not, so they are dropped. Panic messages are limited here: a panic in a worker is a
/// bug, but the machine continues, and its guest may cause more of them.
fn limit_output() {
    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::prelude::*;
    const PANICS: u32 = 20;
    static SEEN: AtomicU32 = AtomicU32::new(0);
    let from_environment = std::env::var("GARRET_LOG").ok().and_then(|filter| filter.parse::<Targets>().ok());
    let filter = from_environment.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let filter = filter.with_targets([("virtiofsd", LevelFilter::OFF), ("virtio_queue", LevelFilter::OFF)]);
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr);
    tracing_subscriber::registry().with(lines).with(filter).init();
    std::panic::set_hook(Box::new(|panic| {
        if SEEN.fetch_add(1, Ordering::Relaxed) < PANICS {
            let thread = std::thread::current();
            eprintln!("garret-vmm: bug in thread {}: {panic}", thread.name().unwrap_or("?"));
        }
    }));
}

/// Raises the limit of open files to the hard limit, which the caller has set: shared folders keep many files open.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

fn seccomp_test(role: Role) -> ExitCode {
    println!("{}: {} calls permitted", role.name(), role.list_len());
    let outcome = role.enter();
    if let Err(error) = outcome {
        eprintln!("garret-vmm: {error}");
        return ExitCode::FAILURE;
    }
    let parent = rustix::process::getppid(); // in no role's list
    eprintln!("garret-vmm: the filter let getppid through: {parent:?}");
    ExitCode::SUCCESS
}
