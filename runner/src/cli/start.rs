//! `garret start`

use anyhow::bail;
use clap::Args;
use garret_api::client::Client;
use garret_api::runner::{Desired, Environment, EnvironmentRequest, Machine, MachinePhase, MachineRequest};

use super::follow::follow;
use super::target::{MachineFlag, Target, me};
use super::up::wait_until_ready;

/// Start the machine and the environments that ran in it; with an ENVIRONMENT, that one.
#[derive(Debug, Args)]
pub(super) struct Start {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    machine: MachineFlag,
    /// Virtual CPUs. Takes effect at the machine's next start.
    #[arg(long, value_name = "N", conflicts_with = "environment")]
    cpus: Option<u8>,
    /// Promised memory: the most that the machine can have. Takes effect at its next start.
    #[arg(long, value_name = "MIB", conflicts_with = "environment")]
    memory: Option<u32>,
    /// Guaranteed memory, which no other machine can take. Takes effect immediately.
    #[arg(long, value_name = "MIB", conflicts_with = "environment")]
    guaranteed: Option<u32>,
    /// Weight for memory beyond the guarantees; the default is 100. Takes effect immediately. Administrators only.
    #[arg(long, value_name = "N", conflicts_with = "environment")]
    weight: Option<u32>,
    /// Assign the machine to this account, which must have the machine's uid. Administrators only.
    #[arg(long, value_name = "NAME", conflicts_with = "environment")]
    owner: Option<String>,
}

impl Start {
    pub(super) async fn run(self, client: &Client) -> anyhow::Result<u8> {
        if self.target.environment.is_some() {
            let environment = self.target.find(client).await?;
            let request = EnvironmentRequest {
                workspace: environment.workspace.clone(),
                desired: Desired::Running,
                config: None,
                local_env: Default::default(),
                rebuild: None,
            };
            let environment: Environment =
                client.put(&format!("/v1/environments/{}", environment.id), &request).await?;
            wait_until_ready(client, &environment).await?;
            return Ok(0);
        }
        let name = self.machine.name().unwrap_or_else(me);
        let request = MachineRequest {
            desired: Some(Desired::Running),
            vcpus: self.cpus,
            memory_mib: self.memory,
            guaranteed_mib: self.guaranteed,
            weight: self.weight,
            owner: self.owner,
        };
        start_machine(client, &name, &request).await?;
        Ok(0)
    }
}

async fn start_machine(client: &Client, name: &str, request: &MachineRequest) -> anyhow::Result<()> {
    let path = format!("/v1/machines/{name}");
    let machine: Machine = client.put(&path, request).await?;
    if machine.phase != MachinePhase::Running {
        match follow(client, &path, machine.last_event, |_| {}, judge).await? {
            Some(Ok(())) => {}
            Some(Err(reason)) => bail!("the machine did not start: {reason}"),
            None => bail!("the machine was removed while it started"),
        }
    }
    let environments: Vec<Environment> = client.get("/v1/environments").await?;
    let mut failed = Vec::new();
    for environment in environments.iter().filter(|one| one.machine == machine.id && one.desired == Desired::Running) {
        if let Err(error) = wait_until_ready(client, environment).await {
            failed.push(format!("{}: {error:#}", environment.id));
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("; ")) }
}

/// The result of a start. `None` while it is in progress.
fn judge(machine: &Machine) -> Option<Result<(), String>> {
    match (machine.desired, machine.phase) {
        (Desired::Stopped, MachinePhase::Stopped | MachinePhase::Failed) => Some(Err(machine.reason.clone())),
        (Desired::Stopped, _) => Some(Err("it was stopped meanwhile".into())),
        (Desired::Running, MachinePhase::Running) => Some(Ok(())),
        (Desired::Running, MachinePhase::Failed) => Some(Err(machine.reason.clone())),
        (Desired::Running, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::machine;

    #[test]
    fn the_machine_decides_how_a_start_ends() {
        use {Desired::*, MachinePhase as Phase};
        for (desired, phase, ended) in [
            (Running, Phase::Running, Some(Ok(()))),
            (Running, Phase::Starting, None),
            (Running, Phase::Stopped, None),
            (Running, Phase::Stopping, None),
            (Running, Phase::Failed, Some(Err("why".to_string()))),
            (Stopped, Phase::Stopped, Some(Err("why".to_string()))),
            (Stopped, Phase::Running, Some(Err("it was stopped meanwhile".to_string()))),
        ] {
            let machine = Machine { desired, phase, reason: "why".into(), ..machine("alice") };
            assert_eq!(judge(&machine), ended, "{machine:?}");
        }
    }
}
