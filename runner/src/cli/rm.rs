//! `garret rm`

use std::io::{self, IsTerminal, Write};

use anyhow::bail;
use clap::Args;
use garret_api::client::{Client, Lines};
use garret_api::runner::{Environment, Event, EventKind, Machine};
use hyper::Method;

use super::output::escape_controls;
use super::target::{MachineFlag, Target};

/// Remove an environment: its container and what belongs to it. The workspace's files stay.
///
/// With --machine, remove the machine and its data disk: all containers, images and home folders.
#[derive(Debug, Args)]
pub(super) struct Rm {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    machine: MachineFlag,
    /// Do not ask for confirmation. Required to remove a machine without a terminal.
    #[arg(short, long)]
    yes: bool,
}

impl Rm {
    pub(super) async fn run(self, client: &Client) -> anyhow::Result<u8> {
        let Some(name) = self.machine.name() else {
            remove_environment(client, &self.target.find(client).await?).await?;
            return Ok(0);
        };
        let machine: Machine = client.get(&format!("/v1/machines/{name}")).await?;
        let question = format!("remove the machine of {} and everything on its data disk?", machine.developer);
        match (self.yes, io::stdin().is_terminal()) {
            (true, _) => {}
            (false, false) => bail!("nothing was removed: there is no terminal to ask on; use --yes"),
            (false, true) if confirmed(&question)? => {}
            (false, true) => bail!("nothing was removed"),
        }
        // By the uid: the name may mean another account by now, and the id of an earlier version's machine may be a name.
        let path = format!("/v1/machines/{}", machine.uid);
        client.clone().with_deadline(super::REMOVAL).delete(&path).await?;
        Ok(0)
    }
}

/// Removes the environment, then prints the problems that the removal reported, such as files that the VMM still has
/// open.
async fn remove_environment(client: &Client, environment: &Environment) -> anyhow::Result<()> {
    let path = format!("/v1/environments/{}", environment.id);
    let removed = client.clone().with_deadline(super::REMOVAL).delete(&path).await;
    if let Err(error) = print_problems(client, environment).await {
        // The removal's own result decides the exit status.
        let _ = writeln!(io::stderr(), "garret: cannot read the events of the removal: {error:#}");
    }
    Ok(removed?)
}

/// Reads the machine's events, because the environment's path may no longer exist.
async fn print_problems(client: &Client, environment: &Environment) -> anyhow::Result<()> {
    let path = format!("/v1/machines/{}/events?after={}", environment.uid, environment.last_event);
    let mut events: Lines<Event> = client.lines::<Event, ()>(Method::GET, &path, None).await?;
    while let Some(event) = events.next().await? {
        match event.what {
            _ if event.environment.as_ref() != Some(&environment.id) => {}
            EventKind::Problem { problem } => {
                writeln!(io::stderr(), "garret: {}", escape_controls(&problem.to_string()))?;
            }
            EventKind::Removed { .. } => break,
            _ => {}
        }
    }
    Ok(())
}

/// Asks on the terminal; any answer but yes means no.
pub(super) fn confirmed(question: &str) -> io::Result<bool> {
    write!(io::stderr(), "{question} [y/N] ")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
