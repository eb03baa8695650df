//! `garret up`

use std::fs;

use anyhow::{Context, bail};
use clap::Args;
use garret_api::agent::EnvironmentPhase;
use garret_api::client::Client;
use garret_api::runner::{Desired, Environment, EnvironmentRequest, Event, EventKind};
use garret_api::{Code, Problem};
use garret_devcontainer::{Folder, find};
use rustix::process::geteuid;

use super::exec::Process;
use super::follow::follow;
use super::progress::ProgressDisplay;
use super::{local_env, output, target};
use crate::environment_id::environment_id;

/// Bring a workspace's devcontainer up, starting the machine if necessary, and run a command in it.
///
/// An existing container is used unchanged. Progress goes to standard error; standard output and the exit status are the
/// command's.
#[derive(Debug, Args)]
pub(super) struct Up {
    /// The workspace.
    #[arg(default_value = ".", value_name = "FOLDER")]
    folder: String,
    /// The devcontainer.json to use, relative to the workspace, or the name of its folder in `.devcontainer`.
    #[arg(long, value_name = "FILE")]
    config: Option<String>,
    /// Remove the container first and build everything again.
    #[arg(long)]
    rebuild: bool,
    /// Consent to send this variable, whose name looks like a credential. The consent is kept for the workspace.
    #[arg(long, value_name = "NAME")]
    allow_env: Vec<String>,
    /// What to run in the container.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Up {
    /// Whether the exit status is a command's.
    pub(super) fn runs_a_command(&self) -> bool {
        !self.command.is_empty()
    }

    pub(super) async fn run(self, client: &Client, json: bool) -> anyhow::Result<u8> {
        if json && self.runs_a_command() {
            bail!("--json and a command would both write to standard output: leave one out");
        }
        let workspace = target::folder(&self.folder)?;
        let files = Folder(&workspace);
        let config =
            find(&files, self.config.as_deref()).with_context(|| format!("workspace {}", workspace.display()))?;
        let text = files.read(&config).with_context(|| format!("cannot read {config}"))?;
        let local_env = local_env::collect(&workspace, &config, &text, &self.allow_env)?;
        let request = EnvironmentRequest {
            workspace: workspace.clone(),
            desired: Desired::Running,
            config: self.config.as_ref().map(|_| config),
            local_env: Some(local_env),
            rebuild: if self.rebuild { Some(rebuild_key()?) } else { None },
        };
        let id = environment_id(geteuid().as_raw(), &workspace);
        let environment: Environment = client.put(&format!("/v1/environments/{id}"), &request).await?;
        wait_until_ready(client, &environment).await?;
        if json {
            output::print_json(&client.get::<Environment>(&format!("/v1/environments/{id}")).await?)?;
        }
        if self.command.is_empty() {
            return Ok(0);
        }
        Process::of(self.command).run(client, &format!("/v1/environments/{id}/exec")).await
    }
}

/// A key that no other rebuild request has.
fn rebuild_key() -> anyhow::Result<String> {
    let source = "/proc/sys/kernel/random/uuid";
    Ok(fs::read_to_string(source).with_context(|| format!("cannot read {source}"))?.trim().to_owned())
}

/// Waits until the environment is ready. Shows its current run from the beginning, even if another client started it.
/// If a newer run replaces it, that run counts.
///
/// # Errors
/// A step fails, or another client stops or removes the environment.
pub(super) async fn wait_until_ready(client: &Client, environment: &Environment) -> anyhow::Result<()> {
    let settled = environment.observed_generation == environment.generation;
    if settled && environment.status.phase == EnvironmentPhase::Ready {
        return Ok(());
    }
    let mut show = ProgressDisplay::new();
    let path = format!("/v1/environments/{}", environment.id);
    let seen = |event: &Event| match &event.what {
        EventKind::Environment { generation, progress } if *generation >= environment.generation => show.step(progress),
        _ => {}
    };
    let ended = follow(client, &path, 0, seen, judge).await;
    drop(show);
    match ended? {
        Some(Ok(())) => Ok(()),
        Some(Err(problem)) => bail!("{problem}"),
        None => bail!("{} was removed while it was starting", environment.id),
    }
}

/// The result of a run. `None` while it is in progress.
fn judge(environment: &Environment) -> Option<Result<(), Problem>> {
    if environment.desired == Desired::Stopped {
        return Some(Err(Problem::new(
            Code::Cancelled,
            format!("{} was stopped while it was starting", environment.id),
        )));
    }
    if environment.observed_generation < environment.generation {
        return None;
    }
    Some(match environment.status.phase {
        EnvironmentPhase::Ready => Ok(()),
        _ => {
            let stopped = || Problem::new(Code::Stopped, format!("{} has stopped", environment.id));
            Err(environment.status.problem.clone().unwrap_or_else(stopped))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::environment;

    #[test]
    fn the_environment_decides_how_a_wait_ends() {
        use EnvironmentPhase::{Failed, Ready, Starting, Stopped};
        let problem = || Some(Problem::new(Code::BuildFailed, "build image: exit status 1"));
        for (desired, generation, observed, phase, problem, ended) in [
            (Desired::Running, 2, 2, Ready, None, Some(Ok(()))),
            (Desired::Running, 2, 1, Ready, None, None),
            (Desired::Running, 3, 2, Starting, None, None),
            (Desired::Running, 2, 2, Failed, problem(), Some(Err("build image: exit status 1"))),
            (Desired::Running, 2, 2, Stopped, None, Some(Err("w-1 has stopped"))),
            (Desired::Stopped, 3, 2, Starting, None, Some(Err("w-1 was stopped while it was starting"))),
            (Desired::Stopped, 3, 3, Stopped, None, Some(Err("w-1 was stopped while it was starting"))),
        ] {
            let mut one = environment("w-1", "alice", "/w");
            (one.desired, one.generation, one.observed_generation) = (desired, generation, observed);
            (one.status.phase, one.status.problem) = (phase, problem);
            let judged = judge(&one).map(|ended| ended.map_err(|problem| problem.detail));
            assert_eq!(judged, ended.map(|ended: Result<(), &str>| ended.map_err(String::from)), "{one:?}");
        }
    }

    #[test]
    fn each_order_has_a_word_of_its_own() {
        assert_ne!(rebuild_key().unwrap(), rebuild_key().unwrap());
    }
}
