//! The steps of a run of `up`, in order.

use garret_api::agent::EnvironmentPhase;
use garret_devcontainer::{Stage, UserEnvProbe};

use super::container::{self, Container};
use super::journal::{Output, StepFailed};
use super::read::{self, Read};
use super::record::Probed;
use super::run::{Run, SAVE_STEP};
use super::{hooks, remote};
use crate::exec;
use crate::users::Users;

/// Runs all steps. The container stays if a step fails.
pub(super) async fn execute(run: &mut Run) -> Result<(), StepFailed> {
    record_begin(run).await?;
    // Checked after the record was written, because that waits for a removal that is still writing.
    if run.entry.is_removed() {
        let renewed = run.entry.renew(&run.spec.share).await;
        renewed.map_err(|problem| StepFailed { step: SAVE_STEP.into(), problem })?;
        record_begin(run).await?;
    }
    run.spec.rebuild &= !run.is_built();
    steps(run).await
}

async fn record_begin(run: &Run) -> Result<(), StepFailed> {
    run.record(|record| {
        record.share.clone_from(&run.spec.share);
        record.generation = record.generation.max(run.spec.generation);
        record.phase = EnvironmentPhase::Starting;
        record.problem = None;
    })
    .await
}

async fn steps(run: &Run) -> Result<(), StepFailed> {
    let read = run.journal.step("read devcontainer.json", async |output| read::read(run, output).await).await?;
    initialize(run, &read).await?;
    let running = container::container(run, &read).await?;
    probe(run, &running).await?;
    if lifecycle(run, &running).await? {
        // The commands may have changed the environment that the user's shell sets.
        run.record(|record| record.container.as_mut().map(|container| container.probed = None)).await?;
        probe(run, &running).await?;
    }
    Ok(())
}

/// `initializeCommand` runs in the guest, in the workspace.
async fn initialize(run: &Run, read: &Read) -> Result<(), StepFailed> {
    let Some(command) = &read.resolved.config.own.initialize_command else { return Ok(()) };
    let workspace = run.workspace();
    let users = run.journal.quiet_step(Stage::InitializeCommand.name(), async || Users::of_guest().await).await?;
    hooks::run(&run.journal, Stage::InitializeCommand, command, |mut request| {
        request.cwd = Some(workspace.to_string_lossy().into_owned());
        exec::guest_process(&users, request, &run.facts.engine_env)
    })
    .await
}

/// Reads the environment of the remote user's shell, unless it has been read since the container was started.
async fn probe(run: &Run, running: &Container) -> Result<(), StepFailed> {
    let kind = running.merged.user_env_probe.unwrap_or_default();
    let started_at = &running.started_at;
    let container = run.container_record();
    let known = container.probed.as_ref().is_some_and(|known| known.kind == kind && known.started_at == *started_at);
    if known {
        return Ok(());
    }
    let ask = async |output: &Output| remote::probe(&container, &running.users, kind, |line| output.line(line)).await;
    let env = if kind == UserEnvProbe::None { None } else { run.journal.step("read user environment", ask).await? };
    let probed = Probed { kind, started_at: started_at.clone(), env: env.unwrap_or_default() };
    tracing::debug!("{} variables of the user's shell", probed.env.len());
    run.record(|record| record.container.as_mut().map(|container| container.probed = Some(probed))).await
}

/// Runs the lifecycle commands that are due. Returns true if a command ran that may change the container's setup.
async fn lifecycle(run: &Run, running: &Container) -> Result<bool, StepFailed> {
    let started_at = &running.started_at;
    let mut any = false;
    for stage in Stage::IN_CONTAINER {
        let container = run.container_record();
        let due = !container.is_done(stage, started_at);
        let commands = if due { running.merged.commands(stage) } else { &[] };
        for command in commands {
            any |= stage < Stage::PostAttachCommand;
            let prepare = |request| remote::process(&container, &running.users, request);
            hooks::run(&run.journal, stage, command, prepare).await?;
        }
        if !commands.is_empty() {
            let synced = run.entry.sync_disk().await;
            synced.map_err(|problem| StepFailed { step: stage.name().to_owned(), problem })?;
        }
        let usable = stage >= running.merged.usable_after();
        if due || usable != container.usable {
            run.record(|record| {
                if let Some(container) = &mut record.container {
                    container.set_done(stage, started_at);
                    container.usable |= usable;
                }
            })
            .await?;
        }
    }
    Ok(any)
}
