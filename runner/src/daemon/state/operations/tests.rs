use garret_api::runner::MachinePhase;

use super::super::tests::{environment, machine, memory};
use super::super::{MachineRow, environments, events, machines};
use super::*;
use crate::daemon::testing::id;

fn new(kind: OperationKind, environment: Option<(&str, u64)>) -> NewOperation<'_> {
    NewOperation { kind, machine: id(7), environment, requested_by: 1000, allowed: Some(Duration::from_secs(5)) }
}

fn with_machine() -> WriteTx<'static> {
    let db = memory();
    machines::put(&db, &machine(7)).unwrap();
    db
}

#[test]
fn an_operation_has_one_outcome_and_the_next_cancels_it() {
    let db = with_machine();
    begin(&db, &new(OperationKind::Start, None)).unwrap();
    let start = in_progress(&db, id(7), None).unwrap().unwrap();
    assert_eq!((start.kind, start.requested_by, start.developer.as_str()), (OperationKind::Start, 1000, "dev7"));
    assert!(start.id.len() == 32 && start.deadline_ms == Some(start.begun_ms + 5000), "{start:?}");
    begin(&db, &new(OperationKind::Stop, None)).unwrap();
    end(&db, id(7), None, &Outcome::Succeeded).unwrap();
    end(&db, id(7), None, &Outcome::Cancelled { reason: "late".into() }).unwrap();
    let [stop, start] = &newest(&db, Some(7)).unwrap()[..] else { panic!("not two") };
    assert_eq!(stop.outcome, Some(Outcome::Succeeded));
    assert_eq!(start.outcome, Some(Outcome::Cancelled { reason: "a stop took its place".into() }));
    assert_eq!(last(&db, id(7), None).unwrap().as_ref(), Some(stop));
    assert_eq!(get(&db, &start.id).unwrap().as_ref(), Some(start));
    assert_eq!(newest(&db, Some(8)).unwrap(), []);
}

#[test]
fn the_final_event_of_its_run_ends_an_environments_operation() {
    let failed = |code: Code| Progress::Failed { step: "s".into(), problem: Problem::new(code, "why") };
    let status = environment(7, "e").status;
    let progress = |generation, progress| EventKind::Environment { generation, progress };
    for (what, outcome) in [
        (progress(2, Progress::Ready { environment: status.clone() }), Some(Outcome::Succeeded)),
        (progress(1, Progress::Ready { environment: status }), None),
        (progress(2, failed(Code::Cancelled)), Some(Outcome::Cancelled { reason: "why".into() })),
        (
            progress(2, failed(Code::BuildFailed)),
            Some(Outcome::Failed { problem: Problem::new(Code::BuildFailed, "why") }),
        ),
        (progress(2, Progress::Started { step: "pull image".into() }), None),
        (EventKind::Stopped { generation: 2 }, Some(Outcome::Succeeded)),
        (EventKind::Removed { generation: 2 }, Some(Outcome::Succeeded)),
        (EventKind::Machine { phase: MachinePhase::Failed, reason: "it ended".into() }, None),
    ] {
        let db = with_machine();
        begin(&db, &new(OperationKind::Start, Some(("e", 2)))).unwrap();
        events::add(&db, id(7), Some("e"), &what).unwrap();
        let operation = last(&db, id(7), Some("e")).unwrap().unwrap();
        assert_eq!(operation.outcome, outcome, "{what:?}");
        let started = matches!(what, EventKind::Environment { progress: Progress::Started { .. }, .. });
        assert_eq!(operation.step.as_deref(), started.then_some("pull image"), "{what:?}");
    }
}

#[test]
fn a_machines_phases_are_steps_of_its_operation_only() {
    let db = with_machine();
    begin(&db, &new(OperationKind::Start, None)).unwrap();
    begin(&db, &new(OperationKind::Start, Some(("e", 1)))).unwrap();
    machines::set_phase(&db, id(7), MachinePhase::Failed, "no memory").unwrap();
    let step = |environment| in_progress(&db, id(7), environment).unwrap().unwrap().step;
    assert_eq!((step(None).as_deref(), step(Some("e"))), (Some("no memory"), None));
}

#[test]
fn of_a_removed_machine_only_the_removal_is_kept() {
    let db = with_machine();
    environments::put(&db, &environment(7, "e")).unwrap();
    begin(&db, &new(OperationKind::Start, Some(("e", 1)))).unwrap();
    begin(&db, &new(OperationKind::Remove, None)).unwrap();
    machines::forget(&db, id(7)).unwrap();
    let [removal] = &newest(&db, Some(7)).unwrap()[..] else { panic!("not one") };
    assert_eq!((removal.kind, &removal.outcome), (OperationKind::Remove, &Some(Outcome::Succeeded)));

    // The next machine of the same developer.
    machines::put(&db, &MachineRow { id: id(8), ..machine(7) }).unwrap();
    begin(&db, &NewOperation { machine: id(8), ..new(OperationKind::Start, None) }).unwrap();
    assert_eq!(newest(&db, Some(7)).unwrap().len(), 2);
    begin(&db, &NewOperation { machine: id(8), ..new(OperationKind::Remove, None) }).unwrap();
    machines::forget(&db, id(8)).unwrap();
    let [removal] = &newest(&db, Some(7)).unwrap()[..] else { panic!("not one") };
    assert_eq!(removal.machine, id(8));
}

#[test]
fn a_removal_ends_with_the_machine_that_stops() {
    let db = with_machine();
    environments::put(&db, &environment(7, "e")).unwrap();
    assert_eq!(environments::remove(&db, id(8), "e").unwrap(), None, "another developer's");
    let removed = environments::remove(&db, id(7), "e").unwrap().unwrap();
    begin(&db, &new(OperationKind::Remove, Some(("e", removed.generation)))).unwrap();
    environments::end_all(&db, id(7), None, false).unwrap();
    assert_eq!(last(&db, id(7), Some("e")).unwrap().unwrap().outcome, Some(Outcome::Succeeded));
    assert!(environments::get(&db, "e").unwrap().unwrap().removed, "its container is removed at the next start");
}

#[test]
fn an_operation_fails_at_its_deadline() {
    let db = with_machine();
    begin(&db, &new(OperationKind::Stop, None)).unwrap();
    begin(&db, &NewOperation { allowed: None, ..new(OperationKind::Start, Some(("e", 1))) }).unwrap();
    let deadline = in_progress(&db, id(7), None).unwrap().unwrap().deadline_ms.unwrap();
    expire(&db, deadline - 1).unwrap();
    assert_eq!(next_deadline(&db).unwrap(), Some(deadline));
    expire(&db, deadline).unwrap();
    assert_eq!(next_deadline(&db).unwrap(), None);
    let Some(Outcome::Failed { problem }) = last(&db, id(7), None).unwrap().unwrap().outcome else { panic!() };
    assert_eq!(problem.code, Code::Deadline);
    assert!(in_progress(&db, id(7), Some("e")).unwrap().is_some());
}

#[test]
fn old_operations_are_dropped_and_one_in_progress_is_kept() {
    let db = with_machine();
    begin(&db, &new(OperationKind::Start, Some(("e", 1)))).unwrap();
    for _ in 0..OPERATIONS_MAX + 40 {
        begin(&db, &new(OperationKind::Stop, None)).unwrap();
    }
    let count: u32 = db.select("SELECT count(*) FROM operations").unwrap().query_row([], |row| row.get(0)).unwrap();
    assert_eq!(count, OPERATIONS_MAX + 1);
    assert!(in_progress(&db, id(7), Some("e")).unwrap().is_some());
}

#[test]
fn an_outcome_of_a_newer_version_is_unknown() {
    let outcome: Outcome = serde_json::from_str(r#"{"result": "postponed"}"#).unwrap();
    assert_eq!(outcome, Outcome::Unknown);
    assert_eq!(serde_json::from_str::<OperationKind>(r#""suspend""#).unwrap(), OperationKind::Unknown);
}
