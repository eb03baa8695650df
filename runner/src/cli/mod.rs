//! The command. Each subcommand has its own file; all of them call the daemon's API.

mod consent;
mod credentials;
mod daemon;
mod env;
mod exec;
mod follow;
mod local_env;
mod logs;
mod ls;
mod operations;
mod output;
mod progress;
mod rm;
mod shell;
mod show;
mod start;
mod stop;
mod stream;
mod streams;
mod target;
mod terminal;
mod top;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use garret_api::client::{Client, Error};

use crate::host::{jail, share};

/// The exit status if a command could not be started in its container.
const NOT_RUN: u8 = 125;
/// How long the daemon may take to answer a removal. For an environment it answers within `stop_deadline_s` and 20 s.
const REMOVAL: Duration = Duration::from_secs(3600);

/// One virtual machine per developer, devcontainers inside.
///
/// An ENVIRONMENT is an id from `garret ls`, or a folder: the workspace, or a folder inside it. The default is the current
/// folder.
#[derive(Debug, Parser)]
#[command(name = "garret", version, disable_help_subcommand = true)]
struct Arguments {
    /// The daemon's socket.
    #[arg(long, global = true, value_name = "PATH", env = "GARRET_SOCKET", default_value = garret_api::runner::SOCKET)]
    socket: PathBuf,
    /// Print data as JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring a workspace's devcontainer up, and run a command in it.
    Up(up::Up),
    /// Run a command in a devcontainer.
    Exec(exec::Exec),
    /// Open a shell in a devcontainer.
    Shell(shell::Shell),
    /// List machines and environments; an administrator sees those of all developers.
    Ls,
    /// Show everything about an environment or a machine.
    Show(show::Show),
    /// List what was requested of machines and environments, by which account, and how it ended.
    Operations,
    /// List the open commands and terminals, or end one.
    Streams(streams::Streams),
    /// Show the memory of the host and of the running machines, live.
    Top(top::Top),
    /// Show the output of a container, or of a machine's console.
    Logs(logs::Logs),
    /// Stop the machine with all its environments, or one environment. Nothing is removed.
    Stop(stop::Stop),
    /// Start the machine and the environments that ran in it, or one environment.
    Start(start::Start),
    /// Remove an environment, or the machine with its data disk.
    Rm(rm::Rm),
    /// List or clear the variables that are kept for an environment.
    Env(env::Env),
    /// Run the host daemon.
    Daemon(daemon::Daemon),
    /// Make a jail and run a VMM in it.
    #[command(hide = true)]
    Jail {
        /// The specification of the jail, as JSON.
        spec: String,
    },
    /// Open a workspace as its developer, and mount it into their machine.
    #[command(hide = true)]
    Share {
        /// Process id of the daemon.
        daemon: i32,
        /// The specification of the workspace and its place, as JSON.
        spec: String,
    },
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let own_status = match &arguments.command {
        Command::Exec(_) | Command::Shell(_) => NOT_RUN,
        Command::Up(up) if up.runs_a_command() => NOT_RUN,
        _ => 1,
    };
    match run(arguments) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("garret: {}", one_line(&error));
            ExitCode::from(own_status)
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<u8> {
    // Both fork and change their rights. In a process with several threads, that would affect only one thread.
    match &arguments.command {
        Command::Jail { spec } => return jail::main(spec).map(|()| 0),
        Command::Share { daemon, spec } => return share::main(*daemon, spec).map(|()| 0),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(dispatch(arguments));
    // A thread may still be reading the terminal; it is not waited for.
    runtime.shutdown_background();
    status
}

async fn dispatch(Arguments { socket, json, command }: Arguments) -> anyhow::Result<u8> {
    let client = Client::unix(&socket);
    match command {
        Command::Up(up) => up.run(&client, json).await,
        Command::Exec(exec) => exec.run(&client).await,
        Command::Shell(shell) => shell.run(&client).await,
        Command::Ls => ls::run(&client, json).await,
        Command::Show(show) => show.run(&client, json).await,
        Command::Operations => operations::run(&client, json).await,
        Command::Streams(streams) => streams.run(&client, json).await,
        Command::Top(top) => top.run(&client, json).await,
        Command::Logs(logs) => logs.run(&client).await,
        Command::Stop(stop) => stop.run(&client).await,
        Command::Start(start) => start.run(&client).await,
        Command::Rm(rm) => rm.run(&client).await,
        Command::Env(env) => env.run(&client, json).await,
        Command::Daemon(daemon) => daemon.run(socket).await,
        Command::Jail { .. } | Command::Share { .. } => Ok(0),
    }
}

/// Formats an error as one line. The most common one is that the daemon does not run.
fn one_line(error: &anyhow::Error) -> String {
    let line = match error.downcast_ref::<Error>() {
        Some(Error::Connect { path, source }) => format!(
            "the daemon does not run (cannot connect to {}: {source}): start it with `systemctl start garret`",
            path.display()
        ),
        _ => format!("{error:#}"),
    };
    line.replace('\n', " ")
}

#[cfg(test)]
mod tests;
