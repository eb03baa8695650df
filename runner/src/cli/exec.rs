//! `garret exec`

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};

use clap::Args;
use garret_api::agent::ExecRequest;
use garret_api::client::Client;

use super::target::{MachineFlag, Target};
use super::{stream, terminal};

/// Run a command in a devcontainer, as its remote user in the workspace's folder.
///
/// Standard input, output and error are connected to the command, and its exit status is returned. If garret runs on a
/// terminal, the command gets a terminal of its own.
#[derive(Debug, Args)]
pub(super) struct Exec {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    machine: MachineFlag,
    #[command(flatten)]
    process: ProcessOptions,
    /// What to run.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// How a process is to be run.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct ProcessOptions {
    /// Set a variable. Without a value, the command gets the caller's value.
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Run as this user.
    #[arg(short, long, value_name = "NAME")]
    user: Option<String>,
    /// Run in this folder.
    #[arg(short = 'w', long, value_name = "FOLDER")]
    workdir: Option<String>,
    /// Never give the command a terminal.
    #[arg(short = 'T', long)]
    no_terminal: bool,
}

impl Exec {
    pub(super) async fn run(self, client: &Client) -> anyhow::Result<u8> {
        let path = exec_path(client, &self.target, &self.machine).await?;
        Process { command: self.command, options: self.process }.run(client, &path).await
    }
}

/// The API path of the stream, of the environment or of the machine itself.
pub(super) async fn exec_path(client: &Client, target: &Target, machine: &MachineFlag) -> anyhow::Result<String> {
    match machine.name() {
        Some(name) => Ok(format!("/v1/machines/{name}/exec")),
        None => Ok(format!("/v1/environments/{}/exec", target.find(client).await?.id)),
    }
}

/// A process to run.
pub(super) struct Process {
    /// Program and arguments; empty: a login shell.
    pub command: Vec<String>,
    /// How to run it.
    pub options: ProcessOptions,
}

impl Process {
    /// A process with default options.
    pub(super) fn of(command: Vec<String>) -> Self {
        Self { command, options: ProcessOptions::default() }
    }

    /// Runs it with the caller's standard streams; returns its exit status.
    pub(super) async fn run(self, client: &Client, path: &str) -> anyhow::Result<u8> {
        let terminal = !self.options.no_terminal && io::stdin().is_terminal() && io::stdout().is_terminal();
        let request = ExecRequest {
            command: self.command,
            env: environment(&self.options.env, terminal, |name| std::env::var(name).ok()),
            cwd: self.options.workdir,
            user: self.options.user,
            terminal: if terminal { terminal::size() } else { None },
        };
        stream::run(client, path, &request).await
    }
}

fn environment(asked: &[String], terminal: bool, own: impl Fn(&str) -> Option<String>) -> BTreeMap<String, String> {
    let term = terminal.then(|| own("TERM")).flatten().map(|term| ("TERM".to_owned(), term));
    let named = asked.iter().filter_map(|variable| match variable.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), value.to_owned())),
        None => own(variable).map(|value| (variable.clone(), value)),
    });
    term.into_iter().chain(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_given_or_taken_from_the_caller() {
        let own = |name: &str| (name == "TERM" || name == "MINE").then(|| format!("my {name}"));
        let asked = ["A=1", "B=x=y", "C=", "MINE", "NOT_SET"].map(String::from);
        let expected =
            [("A", "1"), ("B", "x=y"), ("C", ""), ("MINE", "my MINE")].map(|(n, v)| (n.to_string(), v.to_string()));
        assert_eq!(environment(&asked, false, own), expected.clone().into());
        assert_eq!(environment(&[], true, own), [("TERM".to_string(), "my TERM".to_string())].into());
        assert_eq!(environment(&["TERM=dumb".to_string()], true, own)["TERM"], "dumb");
    }
}
