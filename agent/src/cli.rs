//! The roles of the program: PID 1, the agent, and its helpers.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::SigSet;
use rustix::process::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

use crate::server::vsock::HostOnly;
use crate::server::{self, Agent};
use crate::{environment, exec, init, memory};

/// The records of environments, on the data disk.
const STATE: &str = "/data/garret";
/// Files that belong to this boot only.
const RUN: &str = "/run/garret";
/// How long all containers may take to stop; init waits a little longer.
const STOP_CONTAINERS: Duration = Duration::from_secs(18);

/// Runs the process in the role that its first argument names.
pub fn main() -> ExitCode {
    let role = std::env::args().nth(1);
    match role.as_deref() {
        // First: the kernel passes words of its command line to PID 1.
        _ if std::process::id() == 1 => init::run(),
        Some("agent") => agent(),
        Some("memory-loop") => {
            log(LevelFilter::WARN);
            memory::run_loop()
        }
        Some("unmount") => {
            init::unmount();
            ExitCode::SUCCESS
        }
        Some("--version") => {
            println!("garret-agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!(
                "garret-agent: PID 1 of a garret machine (init=); as a command it knows memory-loop and --version"
            );
            ExitCode::from(2)
        }
    }
}

fn agent() -> ExitCode {
    // Init's blocked signals are inherited; the agent and all processes it starts, including containers, must receive
    // them.
    if let Err(error) = SigSet::empty().thread_set_mask() {
        eprintln!("garret-agent: cannot unblock signals: {error}");
    }
    log(LevelFilter::INFO);
    // The kernel's out-of-memory killer must not kill the agent. Its child processes reset this
    // (`exec::allow_oom_kill`).
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        tracing::warn!("the agent may be killed for lack of memory: {error}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.context("cannot start the runtime").and_then(|runtime| {
        let ended = runtime.block_on(serve());
        // Do not wait for the threads: one may be in a call that does not return, and init waits for this process.
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Logs to standard error; `GARRET_LOG` overrides `level`.
fn log(level: LevelFilter) {
    let from_environment = std::env::var("GARRET_LOG").ok().and_then(|filter| filter.parse::<Targets>().ok());
    let filter = from_environment.unwrap_or_else(|| Targets::new().with_default(level));
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr);
    tracing_subscriber::registry().with(lines).with(filter).init();
}

/// Serves until init asks the agent to end and the containers have stopped.
async fn serve() -> anyhow::Result<()> {
    let init = rustix::process::getppid().filter(|parent| *parent == Pid::INIT);
    let mut terminated = signal(SignalKind::terminate()).context("cannot handle signals")?;
    let state = PathBuf::from(STATE);
    for folder in [&state, &PathBuf::from(RUN)] {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    exec::clean_up();
    environment::clean_up();
    let agent = Agent::new(state, RUN.into(), init);
    agent.memory().start_loop().context("cannot start the memory loop")?;
    let port = garret_api::agent::PORT;
    let listener = HostOnly::bind(port).with_context(|| format!("cannot listen on vsock port {port}"))?;
    let environments: std::sync::Arc<environment::Environments> = agent.environments().clone();
    tokio::select! {
        result = server::serve(listener, agent) => result.context("the server ended"),
        _ = terminated.recv() => {
            if tokio::time::timeout(STOP_CONTAINERS, environments.stop_all()).await.is_err() {
                tracing::warn!("not every container stopped in time");
            }
            Ok(())
        }
    }
}
