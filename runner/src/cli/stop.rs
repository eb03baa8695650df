//! `garret stop`

use anyhow::bail;
use clap::Args;
use garret_api::agent::EnvironmentPhase;
use garret_api::client::Client;
use garret_api::runner::{Desired, Environment, EnvironmentRequest, Happening, Machine, MachinePhase, MachineRequest};

use super::follow::follow;
use super::target::{MachineFlag, Target, me};

/// Stop the machine with all its environments; with an ENVIRONMENT, only that one. Nothing is removed.
#[derive(Debug, Args)]
pub struct Stop {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    machine: MachineFlag,
}

impl Stop {
    pub async fn run(self, client: &Client) -> anyhow::Result<u8> {
        if self.target.environment.is_some() {
            let environment = self.target.find(client).await?;
            stop_environment(client, &environment).await?;
        } else {
            stop_machine(client, &self.machine.developer().unwrap_or_else(me)).await?;
        }
        Ok(0)
    }
}

async fn stop_machine(client: &Client, developer: &str) -> anyhow::Result<()> {
    let path = format!("/v1/machines/{developer}");
    // Asking for what is not there would make it.
    client.get::<Machine>(&path).await?;
    let request = MachineRequest { desired: Some(Desired::Stopped), ..Default::default() };
    let machine: Machine = client.put(&path, &request).await?;
    let still = |phase| matches!(phase, MachinePhase::Stopped | MachinePhase::Failed);
    if still(machine.phase) {
        return Ok(());
    }
    let ended = follow(client, "/v1/events", machine.last_event, |event| match &event.what {
        Happening::Machine { phase, reason } if event.developer == developer && still(*phase) => {
            Some((*phase, reason.clone()))
        }
        _ => None,
    });
    match ended.await? {
        (MachinePhase::Failed, reason) => bail!("the machine did not stop by itself: {reason}"),
        _ => Ok(()),
    }
}

async fn stop_environment(client: &Client, environment: &Environment) -> anyhow::Result<()> {
    let request = EnvironmentRequest {
        workspace: environment.workspace.clone(),
        desired: Desired::Stopped,
        config: None,
        local_env: Default::default(),
        rebuild: false,
    };
    let path = format!("/v1/environments/{}", environment.id);
    let mut environment: Environment = client.put(&path, &request).await?;
    while environment.observed_generation < environment.generation {
        tokio::time::sleep(super::POLL).await;
        environment = client.get(&path).await?;
    }
    match environment.status.phase {
        EnvironmentPhase::Failed => bail!("{} did not stop", environment.id),
        _ => Ok(()),
    }
}
