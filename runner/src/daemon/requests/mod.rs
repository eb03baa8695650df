//! Pure functions from a stored row and a request to the new row.

use std::collections::BTreeMap;
use std::time::Duration;

use garret_api::agent::{EnvironmentPhase, EnvironmentStatus};
use garret_api::runner::{Desired, EnvironmentRequest, MachinePhase, MachineRequest, OperationKind};
use garret_api::{Code, MachineId, Problem};

use super::state::{EnvironmentRow, MachineRow};
use crate::config::{Limits, MEMORY_MIN_MIB, MachineDefaults, Policy};

/// The longest path, in bytes: no system call accepts a longer one.
const PATH_MAX: usize = 4096;
/// The longest key of a request to rebuild, in bytes.
const REBUILD_MAX: usize = 64;
/// The most that a caller's variables may take in total, in bytes.
const LOCAL_ENV_MAX: usize = 256 * 1024;
/// The most memory that one machine may have, in MiB.
const MEMORY_MAX_MIB: u32 = 1 << 20;
/// The largest weight.
const WEIGHT_MAX: u32 = 10_000;
/// The default weight.
pub(super) const WEIGHT: u32 = 100;
/// How much longer than the configured deadlines an operation may take: machines start a few at a time, and what they
/// leave on the host is removed.
const OPERATION_SLACK: Duration = Duration::from_secs(600);

/// The machine as the request wants it. A request to run a failed machine is a request to retry: the failure is
/// cleared.
///
/// # Errors
/// A figure is out of range.
pub(super) fn apply_machine(machine: &MachineRow, request: &MachineRequest) -> Result<MachineRow, Problem> {
    if machine.removed {
        let message = format!("the machine of {} is being removed: try again in a moment", machine.developer);
        return Err(Problem::new(Code::Conflict, message));
    }
    if request.vcpus.is_some_and(|vcpus| !(1..=32).contains(&vcpus)) {
        return Err(Problem::new(Code::Invalid, "vcpus must be 1 to 32"));
    }
    if request.memory_mib.is_some_and(|mib| !(MEMORY_MIN_MIB..=MEMORY_MAX_MIB).contains(&mib)) {
        return Err(Problem::new(Code::Invalid, format!("memory_mib must be {MEMORY_MIN_MIB} to {MEMORY_MAX_MIB}")));
    }
    let memory_mib = request.memory_mib.unwrap_or(machine.memory_mib);
    if let Some(mib) = request.guaranteed_mib
        && !(MEMORY_MIN_MIB..=memory_mib).contains(&mib)
    {
        let range = format!("{MEMORY_MIN_MIB} to the machine's memory_mib, which is {memory_mib}");
        return Err(Problem::new(Code::Invalid, format!("guaranteed_mib must be {range}: not {mib}")));
    }
    if request.weight.is_some_and(|weight| !(1..=WEIGHT_MAX).contains(&weight)) {
        return Err(Problem::new(Code::Invalid, format!("weight must be 1 to {WEIGHT_MAX}")));
    }
    let desired = request.desired.unwrap_or(machine.desired);
    let again = machine.phase == MachinePhase::Failed && request.desired == Some(Desired::Running);
    Ok(MachineRow {
        desired,
        vcpus: request.vcpus.unwrap_or(machine.vcpus),
        memory_mib,
        // A machine that gets less memory cannot keep a guarantee beyond it.
        guaranteed_mib: request.guaranteed_mib.unwrap_or(machine.guaranteed_mib).min(memory_mib),
        weight: request.weight.unwrap_or(machine.weight),
        phase: if again { MachinePhase::Stopped } else { machine.phase },
        ..machine.clone()
    })
}

/// The operation that a request begins, if it changes whether the machine should run.
pub(super) fn machine_operation(kept: Option<&MachineRow>, wanted: &MachineRow) -> Option<OperationKind> {
    let desired = kept.map_or(Desired::Stopped, |kept| kept.desired);
    let again = kept.is_some_and(|kept| kept.phase != wanted.phase);
    match wanted.desired {
        Desired::Running if desired != Desired::Running || again => Some(OperationKind::Start),
        Desired::Stopped if desired != Desired::Stopped => Some(OperationKind::Stop),
        _ => None,
    }
}

/// How long an operation on a machine may take.
pub(super) fn machine_operation_time(kind: OperationKind, settings: &MachineDefaults) -> Option<Duration> {
    let [boot, stop] = [settings.boot_deadline_s, settings.stop_deadline_s].map(Duration::from_secs);
    match kind {
        // It may have to stop first.
        OperationKind::Start => Some(stop + boot + OPERATION_SLACK),
        OperationKind::Stop | OperationKind::Remove => Some(stop + OPERATION_SLACK),
        OperationKind::Rebuild | OperationKind::Unknown => None,
    }
}

/// The operation that a request begins, if it begins a run.
pub(super) fn environment_operation(kept: &EnvironmentRow, wanted: &EnvironmentRow) -> Option<OperationKind> {
    match wanted.desired {
        _ if wanted.generation == kept.generation => None,
        Desired::Stopped => Some(OperationKind::Stop),
        Desired::Running if wanted.rebuild && kept.generation > 0 => Some(OperationKind::Rebuild),
        Desired::Running => Some(OperationKind::Start),
    }
}

/// How long an operation on an environment may take; `None`: a build may take hours.
pub(super) fn environment_operation_time(kind: OperationKind, settings: &MachineDefaults) -> Option<Duration> {
    let ends = matches!(kind, OperationKind::Stop | OperationKind::Remove);
    ends.then(|| Duration::from_secs(settings.stop_deadline_s) + OPERATION_SLACK)
}

/// Checks a machine's figures against its developer's limits.
///
/// # Errors
/// A figure is above its limit.
pub(super) fn check_limits(machine: &MachineRow, limits: &Limits) -> Result<(), Problem> {
    limits.vcpus.check("vcpus", machine.vcpus.into())?;
    limits.memory_mib.check("memory_mib", machine.memory_mib)?;
    limits.guaranteed_mib.check("guaranteed_mib", machine.guaranteed_mib)
}

/// Checks everything in a request that needs no other information.
///
/// # Errors
/// A path leads out of the workspace, or something is too large to store.
pub(super) fn check_environment(request: &EnvironmentRequest) -> Result<(), Problem> {
    let invalid = |said: String| Err(Problem::new(Code::Invalid, said));
    let workspace = &request.workspace;
    if workspace.as_os_str().len() > PATH_MAX || request.config.as_ref().is_some_and(|config| config.len() > PATH_MAX) {
        return invalid(format!("workspace and config have at most {PATH_MAX} bytes each"));
    }
    if !workspace.is_absolute() {
        return invalid(format!("workspace {}: not an absolute path", workspace.display()));
    }
    if let Some(config) = &request.config {
        let inside = !config.is_empty() && !config.starts_with('/') && config.split('/').all(|part| part != "..");
        if !inside {
            return Err(Problem::new(Code::Invalid, format!("config `{config}` must be a path inside the workspace")));
        }
    }
    if request.rebuild.as_ref().is_some_and(|order| order.is_empty() || order.len() > REBUILD_MAX) {
        return Err(Problem::new(Code::Invalid, format!("rebuild must be a word of 1 to {REBUILD_MAX} bytes")));
    }
    if request.local_env.iter().flatten().map(|(name, value)| name.len() + value.len()).sum::<usize>() > LOCAL_ENV_MAX {
        return Err(Problem::new(Code::Invalid, format!("local_env is larger than {LOCAL_ENV_MAX} bytes")));
    }
    Ok(())
}

/// The size of the environment's stored variables, in bytes.
pub(super) fn local_env_bytes(environment: &EnvironmentRow) -> usize {
    environment.local_env.iter().map(|(name, value)| name.len() + value.len()).sum()
}

/// A new environment, before any work on it.
pub(super) fn new_environment(id: &str, machine: MachineId, request: &EnvironmentRequest) -> EnvironmentRow {
    EnvironmentRow {
        id: id.into(),
        machine,
        workspace: request.workspace.clone(),
        config: None,
        local_env: BTreeMap::new(),
        desired: Desired::Stopped,
        rebuild: false,
        rebuild_key: None,
        removed: false,
        generation: 0,
        observed_generation: 0,
        status: EnvironmentStatus {
            id: id.into(),
            phase: EnvironmentPhase::Stopped,
            container_id: None,
            remote_user: None,
            workspace_folder: None,
            problem: None,
        },
    }
}

/// The environment as the request wants it. The generation grows if there is work to do. Two equal requests at once
/// share one run, and a request for the current state starts none.
pub(super) fn apply_environment(
    kept: &EnvironmentRow,
    request: &EnvironmentRequest,
    policy: &Policy,
) -> EnvironmentRow {
    let other_config = request.config.is_some() && request.config != kept.config;
    let ordered = request.rebuild.is_some() && request.rebuild != kept.rebuild_key;
    let rebuild = ordered || kept.removed || (other_config && kept.generation > 0);
    let on_its_way = kept.status.phase == EnvironmentPhase::Starting && !kept.removed;
    let run = match request.desired {
        Desired::Stopped => {
            // If stopping failed before, it is tried again.
            let failed = kept.settled() && kept.status.phase == EnvironmentPhase::Failed;
            kept.desired != Desired::Stopped || kept.removed || failed
        }
        Desired::Running if kept.desired != Desired::Running || kept.removed => true,
        Desired::Running if on_its_way => other_config || ordered,
        Desired::Running => rebuild || kept.status.phase != EnvironmentPhase::Ready,
    };
    let mut row = EnvironmentRow {
        config: request.config.clone().or_else(|| kept.config.clone()),
        desired: request.desired,
        rebuild_key: request.rebuild.clone().or_else(|| kept.rebuild_key.clone()),
        removed: false,
        ..kept.clone()
    };
    // A caller that sends no variables (`garret start`) does not remove those of an earlier request.
    if let Some(local_env) = &request.local_env {
        let admitted = local_env.iter().filter(|(name, _)| policy.admits(name));
        row.local_env = admitted.map(|(name, value)| (name.clone(), value.clone())).collect();
    }
    if run {
        row.generation += 1;
        row.rebuild = rebuild || (kept.rebuild && !kept.settled());
        row.status.problem = None;
        if request.desired == Desired::Running {
            row.status.phase = EnvironmentPhase::Starting;
        }
    }
    row
}

#[cfg(test)]
mod tests;
