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
