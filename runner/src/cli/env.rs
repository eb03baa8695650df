//! `garret env`

use clap::{Args, Subcommand};
use garret_api::client::Client;

use super::consent::Consent;
use super::output;
use super::target::Target;

/// List or clear the stored variables (`${localEnv:…}`) of an environment.
#[derive(Debug, Args)]
pub(super) struct Env {
    #[command(subcommand)]
    command: EnvCommand,
}

#[derive(Debug, Subcommand)]
enum EnvCommand {
    /// List the names of the variables.
    Ls(Target),
    /// Remove the variables, and the consent to send credentials to the workspace. A container keeps its variables until
    /// `garret up --rebuild`.
    Clear(Target),
}

impl Env {
    pub(super) async fn run(self, client: &Client, json: bool) -> anyhow::Result<u8> {
        match self.command {
            EnvCommand::Ls(target) => {
                let path = format!("/v1/environments/{}/local-env", target.find(client).await?.id);
                let names: Vec<String> = client.get(&path).await?;
                match json {
                    true => output::print_json(&names)?,
                    false => output::print(&names.iter().map(|name| format!("{name}\n")).collect::<String>())?,
                }
            }
            EnvCommand::Clear(target) => {
                let environment = target.find(client).await?;
                client.delete(&format!("/v1/environments/{}/local-env", environment.id)).await?;
                Consent::read()?.clear(&environment.workspace)?;
            }
        }
        Ok(0)
    }
}
