//! `garret up`

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use clap::Args;
use garret_api::agent::EnvironmentPhase;
use garret_api::client::Client;
use garret_api::runner::{Desired, Environment, EnvironmentRequest, Happening};
use garret_devcontainer::find;
use garret_devcontainer::find::Files;
use rustix::process::geteuid;

use super::exec::Process;
use super::follow::follow;
use super::progress::{Ended, Show};
use super::{local_env, output, target};
use crate::environment_id::environment_id;

/// Bring a workspace's devcontainer up, starting the machine if need be, and run a command in it.
///
/// What is already there is used as it is. Progress goes to standard error; standard output and the exit status are the
/// command's.
#[derive(Debug, Args)]
pub struct Up {
    /// The workspace.
    #[arg(default_value = ".", value_name = "FOLDER")]
    folder: String,
    /// The devcontainer.json to use, relative to the workspace, or the name of its folder in `.devcontainer`.
    #[arg(long, value_name = "FILE")]
    config: Option<String>,
    /// Remove the container first and build everything anew.
    #[arg(long)]
    rebuild: bool,
    /// Give the devcontainer a variable that it asks for although its name looks like a credential; asked only once.
    #[arg(long, value_name = "NAME")]
    allow_env: Vec<String>,
    /// What to run in the container.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Up {
    /// Whether the exit status is a command's.
    pub fn runs_a_command(&self) -> bool {
        !self.command.is_empty()
    }

    pub async fn run(self, client: &Client, json: bool) -> anyhow::Result<u8> {
        if json && self.runs_a_command() {
            bail!("--json and a command would both write to standard output: leave one out");
        }
        let workspace = target::folder(&self.folder)?;
        let config = find(&Folder(&workspace), self.config.as_deref())
            .with_context(|| format!("workspace {}", workspace.display()))?;
        let text = fs::read(workspace.join(&config)).with_context(|| format!("cannot read {config}"))?;
        let local_env = local_env::collect(&workspace, &config, &text, &self.allow_env)?;
        let request = EnvironmentRequest {
            workspace: workspace.clone(),
            desired: Desired::Running,
            config: self.config.as_ref().map(|_| config),
            local_env: Some(local_env),
            rebuild: self.rebuild,
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

/// Follows the environment's present run from its beginning, whoever began it.
///
/// # Errors
/// A step fails.
pub async fn wait_until_ready(client: &Client, environment: &Environment) -> anyhow::Result<()> {
    let settled = environment.observed_generation == environment.generation;
    if settled && environment.status.phase == EnvironmentPhase::Ready {
        return Ok(());
    }
    let mut show = Show::new();
    let path = format!("/v1/environments/{}/events", environment.id);
    let ended = follow(client, &path, 0, |event| match &event.what {
        Happening::Environment { generation, progress } if *generation >= environment.generation => show.step(progress),
        _ => None,
    })
    .await?;
    drop(show);
    match ended {
        Ended::Ready => Ok(()),
        Ended::Failed(problem) => bail!("{problem}"),
    }
}

/// A workspace's files, as the search for its devcontainer.json asks for them.
struct Folder<'a>(&'a Path);

impl Files for Folder<'_> {
    fn is_file(&self, path: &str) -> bool {
        self.0.join(path).is_file()
    }

    fn folders(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.0.join(path)).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.path().is_dir());
        folders.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }
}
