//! `garret stop`

use anyhow::bail;
use clap::Args;
use garret_api::agent::EnvironmentPhase;
use garret_api::client::Client;
use garret_api::runner::{
    Desired, Environment, EnvironmentRequest, Event, EventKind, Machine, MachinePhase, MachineRequest,
};

use super::follow::follow;
use super::output::escape_controls;
use super::target::{MachineFlag, Target, me};

/// Stop the machine with all its environments; with an ENVIRONMENT, only that one. Nothing is removed.
#[derive(Debug, Args)]
pub(super) struct Stop {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    machine: MachineFlag,
}

impl Stop {
    pub(super) async fn run(self, client: &Client) -> anyhow::Result<u8> {
        if self.target.environment.is_some() {
            let environment = self.target.find(client).await?;
            stop_environment(client, &environment).await?;
        } else {
            stop_machine(client, &self.machine.name().unwrap_or_else(me)).await?;
        }
        Ok(0)
    }
}

async fn stop_machine(client: &Client, name: &str) -> anyhow::Result<()> {
    // Checked first: a request for a machine that does not exist would create it. Then by the uid, see `rm`.
    let machine: Machine = client.get(&format!("/v1/machines/{name}")).await?;
    let path = format!("/v1/machines/{}", machine.uid);
    let request = MachineRequest { desired: Some(Desired::Stopped), ..Default::default() };
    let machine: Machine = client.put(&path, &request).await?;
    if machine.phase == MachinePhase::Failed {
        eprintln!("{}", escape_controls(&format!("the machine had ended already: {}", machine.reason)));
        return Ok(());
    }
    match follow(client, &path, machine.last_event, print_problem, judge_machine).await? {
        // It was removed meanwhile, so it does not run either.
        Some(Ok(())) | None => Ok(()),
        Some(Err(reason)) => bail!("the machine did not stop: {reason}"),
    }
}

/// Such as an agent that refuses, or a power cut.
fn print_problem(event: &Event) {
    if let EventKind::Problem { problem } = &event.what {
        eprintln!("{}", escape_controls(&problem.detail));
    }
}

/// The result of a machine's stop. `None` while it is in progress.
fn judge_machine(machine: &Machine) -> Option<Result<(), String>> {
    match (machine.desired, machine.phase) {
        (_, MachinePhase::Failed) => Some(Err(machine.reason.clone())),
        (Desired::Running, _) => Some(Err("it was started again meanwhile".into())),
        (Desired::Stopped, MachinePhase::Stopped) => Some(Ok(())),
        (Desired::Stopped, _) => None,
    }
}

async fn stop_environment(client: &Client, environment: &Environment) -> anyhow::Result<()> {
    let request = EnvironmentRequest {
        workspace: environment.workspace.clone(),
        desired: Desired::Stopped,
        config: None,
        local_env: Default::default(),
        rebuild: None,
    };
    let path = format!("/v1/environments/{}", environment.id);
    let environment: Environment = client.put(&path, &request).await?;
    match follow(client, &path, environment.last_event, print_problem, judge_environment).await? {
        Some(Ok(())) | None => Ok(()),
        Some(Err(reason)) => bail!("{}: {reason}", environment.id),
    }
}

/// The result of an environment's stop. `None` while it is in progress.
fn judge_environment(environment: &Environment) -> Option<Result<(), String>> {
    if environment.desired == Desired::Running {
        return Some(Err("it was started again meanwhile".into()));
    }
    if environment.observed_generation < environment.generation {
        return None;
    }
    Some(match (environment.status.phase, &environment.status.problem) {
        (EnvironmentPhase::Failed, Some(problem)) => Err(problem.detail.clone()),
        (EnvironmentPhase::Failed, None) => Err("it could not be stopped".into()),
        _ => Ok(()),
    })
}

#[cfg(test)]
mod tests {
    use garret_api::{Code, Problem};

    use super::*;
    use crate::cli::tests::{environment, machine};

    #[test]
    fn the_machine_decides_how_a_stop_ends() {
        use {Desired::*, MachinePhase as Phase};
        for (desired, phase, ended) in [
            (Stopped, Phase::Stopped, Some(Ok(()))),
            (Stopped, Phase::Stopping, None),
            (Stopped, Phase::Running, None),
            (Stopped, Phase::Failed, Some(Err("why".to_string()))),
            (Running, Phase::Starting, Some(Err("it was started again meanwhile".to_string()))),
        ] {
            let machine = Machine { desired, phase, reason: "why".into(), ..machine("alice") };
            assert_eq!(judge_machine(&machine), ended, "{machine:?}");
        }
    }

    #[test]
    fn an_environment_has_stopped_when_its_run_has_ended() {
        let stopping = |desired, observed_generation| Environment {
            desired,
            generation: 2,
            observed_generation,
            ..environment("w-1", "alice", "/w")
        };
        assert_eq!(judge_environment(&stopping(Desired::Stopped, 1)), None);
        assert_eq!(judge_environment(&stopping(Desired::Stopped, 2)), Some(Ok(())));
        assert!(judge_environment(&stopping(Desired::Running, 1)).unwrap().is_err());
        let mut failed = stopping(Desired::Stopped, 2);
        failed.status.phase = EnvironmentPhase::Failed;
        failed.status.problem = Some(Problem::new(Code::Unavailable, "stop: why"));
        assert_eq!(judge_environment(&failed), Some(Err("stop: why".into())));
    }
}
