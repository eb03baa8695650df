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
mod tests {
    use super::super::state::tests::machine;
    use super::super::testing::id;
    use super::*;

    fn request(desired: Desired) -> EnvironmentRequest {
        EnvironmentRequest { workspace: "/w".into(), desired, config: None, local_env: None, rebuild: None }
    }

    fn up() -> EnvironmentRequest {
        request(Desired::Running)
    }

    fn put(kept: &EnvironmentRow, request: &EnvironmentRequest) -> EnvironmentRow {
        apply_environment(kept, request, &Policy::default())
    }

    fn fresh() -> EnvironmentRow {
        new_environment("w-1", id(7), &up())
    }

    /// The row once its run has ended in this phase.
    fn ended(mut row: EnvironmentRow, phase: EnvironmentPhase) -> EnvironmentRow {
        row.observed_generation = row.generation;
        row.rebuild = false;
        row.status.phase = phase;
        row
    }

    #[test]
    fn the_first_request_begins_a_run_and_the_same_again_joins_it() {
        let first = put(&fresh(), &up());
        assert_eq!((first.generation, first.status.phase), (1, EnvironmentPhase::Starting));
        assert_eq!(put(&first, &up()), first);
    }

    #[test]
    fn a_ready_environment_stays_and_a_failed_one_is_retried() {
        let first = put(&fresh(), &up());
        for (phase, generation) in
            [(EnvironmentPhase::Ready, 1), (EnvironmentPhase::Failed, 2), (EnvironmentPhase::Stopped, 2)]
        {
            assert_eq!(put(&ended(first.clone(), phase), &up()).generation, generation, "{phase:?}");
        }
    }

    #[test]
    fn an_order_to_rebuild_repeated_is_one_order() {
        let order = |word: &str| EnvironmentRequest { rebuild: Some(word.into()), ..up() };
        let ready = ended(put(&fresh(), &up()), EnvironmentPhase::Ready);
        let row = put(&ready, &order("a"));
        assert_eq!((row.generation, row.rebuild), (2, true));
        assert_eq!(put(&row, &order("a")), row);
        assert_eq!(put(&row, &up()), row);
        // The answer was lost, and the run ended before the request was repeated.
        let done = ended(row.clone(), EnvironmentPhase::Ready);
        assert_eq!(put(&done, &order("a")), done);
        let failed = put(&ended(row.clone(), EnvironmentPhase::Failed), &order("a"));
        assert_eq!((failed.generation, failed.rebuild), (3, false));
        // The files changed and the request was repeated while the first run was still in progress.
        for kept in [&row, &done] {
            let again = put(kept, &order("b"));
            assert_eq!((again.generation, again.rebuild), (3, true));
        }
        let (empty, long) = (order(""), order(&"x".repeat(REBUILD_MAX + 1)));
        assert!(check_environment(&empty).is_err() && check_environment(&long).is_err());
        assert!(check_environment(&order(&"x".repeat(REBUILD_MAX))).is_ok());
    }

    #[test]
    fn another_configuration_is_another_container() {
        let named = EnvironmentRequest { config: Some(".devcontainer/b/devcontainer.json".into()), ..up() };
        let ready = ended(put(&fresh(), &named), EnvironmentPhase::Ready);
        assert!(!ready.rebuild);
        assert_eq!(put(&ready, &named).generation, 1);
        assert_eq!(put(&ready, &up()).config, named.config);
        let other = put(&ready, &EnvironmentRequest { config: Some("x.json".into()), ..up() });
        assert_eq!((other.generation, other.rebuild), (2, true));
    }

    #[test]
    fn stopping_is_a_run_too_and_once_is_enough() {
        let ready = ended(put(&fresh(), &up()), EnvironmentPhase::Ready);
        let stopping = put(&ready, &request(Desired::Stopped));
        assert_eq!((stopping.generation, stopping.desired), (2, Desired::Stopped));
        assert_eq!(put(&stopping, &request(Desired::Stopped)).generation, 2);
        assert_eq!(put(&stopping, &up()).generation, 3);
        let failed = ended(stopping.clone(), EnvironmentPhase::Failed);
        let again = put(&failed, &request(Desired::Stopped));
        assert_eq!((again.generation, put(&again, &request(Desired::Stopped)).generation), (3, 3));
        let stopped = ended(stopping, EnvironmentPhase::Stopped);
        assert_eq!(put(&stopped, &request(Desired::Stopped)).generation, 2);
    }

    #[test]
    fn an_environment_requested_after_removal_is_rebuilt() {
        let removed = EnvironmentRow { removed: true, ..ended(put(&fresh(), &up()), EnvironmentPhase::Ready) };
        let row = put(&removed, &up());
        assert_eq!((row.generation, row.rebuild, row.removed), (2, true, false));
    }

    #[test]
    fn the_policy_filters_the_callers_variables() {
        let local_env: BTreeMap<String, String> =
            [("HOME", "/h"), ("TOKEN", "s")].map(|(name, value)| (name.into(), value.into())).into();
        let policy = Policy { local_env: vec!["HOME".into()] };
        let with = |local_env| EnvironmentRequest { local_env: Some(local_env), ..up() };
        let row = apply_environment(&fresh(), &with(local_env), &policy);
        assert_eq!(row.local_env.keys().collect::<Vec<_>>(), ["HOME"]);
        assert_eq!(apply_environment(&row, &up(), &policy).local_env, row.local_env);
        assert!(apply_environment(&row, &with(BTreeMap::new()), &policy).local_env.is_empty());
    }

    #[test]
    fn a_configuration_outside_the_workspace_is_refused() {
        for (config, fine) in [
            ("a/b.json", true),
            (".devcontainer.json", true),
            ("..x/y", true),
            ("", false),
            ("/etc/x", false),
            ("a/../../b", false),
        ] {
            let request = EnvironmentRequest { config: Some(config.into()), ..up() };
            assert_eq!(check_environment(&request).is_ok(), fine, "{config}");
        }
        let local_env = Some([("X".to_string(), "y".repeat(LOCAL_ENV_MAX))].into());
        assert!(check_environment(&EnvironmentRequest { local_env, ..up() }).is_err());
    }

    #[test]
    fn absent_fields_of_a_machine_stay() {
        let kept = MachineRow { phase: MachinePhase::Running, desired: Desired::Running, ..machine(7) };
        assert_eq!(apply_machine(&kept, &MachineRequest::default()).unwrap(), kept);
        let request = MachineRequest {
            vcpus: Some(4),
            memory_mib: Some(1024),
            guaranteed_mib: Some(1024),
            weight: Some(200),
            owner: None,
            desired: Some(Desired::Stopped),
        };
        let row = apply_machine(&kept, &request).unwrap();
        assert_eq!((row.vcpus, row.memory_mib, row.desired), (4, 1024, Desired::Stopped));
        assert_eq!((row.guaranteed_mib, row.weight), (1024, 200));
        let less = apply_machine(&row, &MachineRequest { memory_mib: Some(300), ..Default::default() }).unwrap();
        assert_eq!((less.memory_mib, less.guaranteed_mib), (300, 300));
    }

    #[test]
    fn only_a_request_that_changes_something_begins_an_operation() {
        use Desired::{Running, Stopped};
        use MachinePhase::Failed;
        let row = |desired, phase| MachineRow { desired, phase, ..machine(7) };
        let stopped = MachinePhase::Stopped;
        for (kept, wanted, kind) in [
            (None, row(Running, stopped), Some(OperationKind::Start)),
            (None, row(Stopped, stopped), None),
            (Some(row(Stopped, stopped)), row(Running, stopped), Some(OperationKind::Start)),
            (Some(row(Running, stopped)), row(Running, stopped), None),
            (Some(row(Running, Failed)), row(Running, stopped), Some(OperationKind::Start)),
            (Some(row(Running, Failed)), row(Stopped, Failed), Some(OperationKind::Stop)),
            (Some(row(Stopped, Failed)), row(Stopped, Failed), None),
        ] {
            assert_eq!(machine_operation(kept.as_ref(), &wanted), kind, "{kept:?} {wanted:?}");
        }
        let first = put(&fresh(), &up());
        assert_eq!(environment_operation(&fresh(), &first), Some(OperationKind::Start));
        let ready = ended(first, EnvironmentPhase::Ready);
        let rebuild = EnvironmentRequest { rebuild: Some("key".into()), ..up() };
        for (request, kind) in
            [(up(), None), (rebuild, Some(OperationKind::Rebuild)), (request(Stopped), Some(OperationKind::Stop))]
        {
            assert_eq!(environment_operation(&ready, &put(&ready, &request)), kind, "{request:?}");
        }
    }

    #[test]
    fn only_asking_to_run_forgets_a_failure() {
        let failed = MachineRow { phase: MachinePhase::Failed, desired: Desired::Running, ..machine(7) };
        let phase = |desired| apply_machine(&failed, &MachineRequest { desired, ..Default::default() }).unwrap().phase;
        assert_eq!(phase(None), MachinePhase::Failed);
        assert_eq!(phase(Some(Desired::Stopped)), MachinePhase::Failed);
        assert_eq!(phase(Some(Desired::Running)), MachinePhase::Stopped);
    }

    #[test]
    fn impossible_figures_are_refused() {
        let figures = |vcpus, memory_mib| MachineRequest { vcpus, memory_mib, ..Default::default() };
        let shares = |guaranteed_mib, weight| MachineRequest { guaranteed_mib, weight, ..Default::default() };
        for (request, fine) in [
            (figures(Some(32), Some(256)), true),
            (figures(Some(0), None), false),
            (figures(Some(33), None), false),
            (figures(None, Some(255)), false),
            (shares(Some(256), Some(1)), true),
            (shares(Some(512), Some(10_000)), true),
            (shares(Some(255), None), false),
            (shares(Some(513), None), false),
            (shares(None, Some(0)), false),
            (shares(None, Some(10_001)), false),
            (MachineRequest { memory_mib: Some(1024), ..shares(Some(1024), None) }, true),
            (MachineRequest { memory_mib: Some(300), ..shares(Some(400), None) }, false),
        ] {
            assert_eq!(apply_machine(&machine(7), &request).is_ok(), fine, "{request:?}");
        }
        let removed = MachineRow { removed: true, ..machine(7) };
        assert_eq!(apply_machine(&removed, &MachineRequest::default()).unwrap_err().code, Code::Conflict);
        let refused = apply_machine(&machine(7), &shares(Some(600), None)).unwrap_err().detail;
        assert_eq!(refused, "guaranteed_mib must be 256 to the machine's memory_mib, which is 512: not 600");
    }
}
