//! The table of operations: the newest [`OPERATIONS_MAX`] of each developer.
//!
//! A request begins an operation in the transaction that writes the desired state. The operation of an environment ends
//! with the one final event of its run; that of a machine ends when its driver has nothing left to do.

use std::time::Duration;

use garret_api::agent::Progress;
use garret_api::runner::{EventKind, Operation, OperationKind, Outcome};
use garret_api::{Code, MachineId, Problem};
use rusqlite::{OptionalExtension, Row, params};

use super::{Json, ReadTx, Text, WriteTx, bounded_json, json, now_ms};

/// The number of operations stored per developer.
const OPERATIONS_MAX: u32 = 256;
/// The most operations that are read at once.
const LIST_MAX: u32 = 256;

/// An operation that a client requests.
#[derive(Clone, Debug)]
pub(crate) struct NewOperation<'a> {
    pub kind: OperationKind,
    pub machine: MachineId,
    /// The environment's id and the generation of its run; `None`: it is about the machine.
    pub environment: Option<(&'a str, u64)>,
    pub requested_by: u32,
    /// How long it may take.
    pub allowed: Option<Duration>,
}

const COLUMNS: &str =
    "id, kind, machine, developer, owner, environment, generation, requested_by, begun_ms, deadline_ms, step,
    ended_ms, outcome FROM operations";

fn row(row: &Row<'_>) -> rusqlite::Result<Operation> {
    Ok(Operation {
        id: row.get(0)?,
        kind: row.get::<_, Json<_>>(1)?.0,
        machine: row.get::<_, Text<_>>(2)?.0,
        developer: row.get(3)?,
        uid: row.get(4)?,
        environment: row.get(5)?,
        generation: row.get(6)?,
        requested_by: row.get(7)?,
        begun_ms: row.get(8)?,
        deadline_ms: row.get(9)?,
        step: row.get(10)?,
        ended_ms: row.get(11)?,
        outcome: row.get::<_, Option<Json<_>>>(12)?.map(|json| json.0),
    })
}

/// Begins an operation. One on the same machine or environment that has not ended is cancelled.
pub(crate) fn begin(db: &WriteTx<'_>, new: &NewOperation<'_>) -> rusqlite::Result<()> {
    let environment = new.environment.map(|(id, _)| id);
    let replaced = Outcome::Cancelled { reason: format!("{} took its place", request_name(new.kind)) };
    end(db, new.machine, environment, &replaced)?;
    let now = now_ms();
    db.change(
        "INSERT INTO operations (id, kind, machine, developer, owner, environment, generation, requested_by, begun_ms,
             deadline_ms)
         SELECT lower(hex(randomblob(16))), ?, id, developer, owner, ?, ?, ?, ?, ? FROM machines WHERE id = ?",
    )?
    .execute(params![
        json(&new.kind)?,
        environment,
        new.environment.map(|(_, generation)| generation),
        new.requested_by,
        now,
        new.allowed.map(|allowed| now + allowed.as_millis() as u64),
        new.machine.as_str()
    ])?;
    db.change(
        "DELETE FROM operations WHERE owner = (SELECT owner FROM machines WHERE id = ?1) AND outcome IS NOT NULL
         AND number <= (SELECT number FROM operations WHERE owner = (SELECT owner FROM machines WHERE id = ?1)
             ORDER BY number DESC LIMIT 1 OFFSET ?2)",
    )?
    .execute(params![new.machine.as_str(), OPERATIONS_MAX])?;
    Ok(())
}

fn request_name(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Start => "a start",
        OperationKind::Rebuild => "a rebuild",
        OperationKind::Stop => "a stop",
        OperationKind::Remove => "a removal",
        OperationKind::Unknown => "another request",
    }
}

/// Ends the operation on this machine or environment that is in progress, if there is one.
pub(crate) fn end(
    db: &WriteTx<'_>,
    machine: MachineId,
    environment: Option<&str>,
    outcome: &Outcome,
) -> rusqlite::Result<()> {
    db.change(
        "UPDATE operations SET outcome = ?, ended_ms = ? WHERE machine = ? AND environment IS ? AND outcome IS NULL",
    )?
    .execute(params![bounded_json(outcome)?, now_ms(), machine.as_str(), environment])?;
    Ok(())
}

/// Ends the operation with this id, unless it has ended.
pub(crate) fn end_one(db: &WriteTx<'_>, id: &str, outcome: &Outcome) -> rusqlite::Result<()> {
    db.change("UPDATE operations SET outcome = ?, ended_ms = ? WHERE id = ? AND outcome IS NULL")?.execute(params![
        bounded_json(outcome)?,
        now_ms(),
        id
    ])?;
    Ok(())
}

/// The machine's row will be deleted: this ends its removal, and deletes what else was requested of it and of its owner's
/// deleted machines. Another person may get the uid, who must not see it.
pub(super) fn end_with_machine(db: &WriteTx<'_>, machine: MachineId) -> rusqlite::Result<()> {
    end(db, machine, None, &Outcome::Succeeded)?;
    let removal = json(&OperationKind::Remove)?;
    db.change(
        "DELETE FROM operations WHERE owner = (SELECT owner FROM machines WHERE id = ?1)
         AND (machine = ?1 OR machine NOT IN (SELECT id FROM machines)) AND number IS NOT (SELECT max(number)
             FROM operations WHERE machine = ?1 AND environment IS NULL AND kind = ?2)",
    )?
    .execute(params![machine.as_str(), removal])?;
    Ok(())
}

/// The next deadline of an operation in progress, in milliseconds since 1970.
pub(crate) fn next_deadline(db: &ReadTx<'_>) -> rusqlite::Result<Option<u64>> {
    db.select("SELECT min(deadline_ms) FROM operations WHERE outcome IS NULL")?.query_row([], |row| row.get(0))
}

/// Ends operations whose deadline has passed.
pub(crate) fn expire(db: &WriteTx<'_>, now_ms: u64) -> rusqlite::Result<()> {
    let problem = Problem::new(Code::Deadline, "it did not end by its deadline; the daemon continues to try");
    db.change("UPDATE operations SET outcome = ?, ended_ms = ?2 WHERE outcome IS NULL AND deadline_ms <= ?2")?
        .execute(params![json(&Outcome::Failed { problem })?, now_ms])?;
    Ok(())
}

/// What an event means for the operation in progress on its machine or environment.
pub(super) fn advance(
    db: &WriteTx<'_>,
    machine: MachineId,
    environment: Option<&str>,
    what: &EventKind,
) -> rusqlite::Result<()> {
    let (generation, change) = match change(what) {
        Some(change) => change,
        None => return Ok(()),
    };
    let Some(operation) = in_progress(db, machine, environment)? else { return Ok(()) };
    if operation.generation != generation {
        return Ok(());
    }
    match change {
        Change::Step(step) => {
            db.change("UPDATE operations SET step = ? WHERE id = ?")?.execute(params![step, operation.id])?;
            Ok(())
        }
        Change::End(outcome) => end(db, machine, environment, &outcome),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Step(String),
    End(Outcome),
}

/// What an event means, and for which run. A machine's phase is only a step: its driver knows when it is at rest.
fn change(what: &EventKind) -> Option<(Option<u64>, Change)> {
    let ended = |generation: u64, outcome| Some((Some(generation), Change::End(outcome)));
    match what {
        EventKind::Machine { reason, .. } => Some((None, Change::Step(reason.clone()))),
        EventKind::Environment { generation, progress } => match progress {
            Progress::Started { step } => Some((Some(*generation), Change::Step(step.clone()))),
            Progress::Ready { .. } => ended(*generation, Outcome::Succeeded),
            Progress::Failed { problem, .. } if problem.code == Code::Cancelled => {
                ended(*generation, Outcome::Cancelled { reason: problem.detail.clone() })
            }
            Progress::Failed { problem, .. } => ended(*generation, Outcome::Failed { problem: problem.clone() }),
            Progress::Output { .. } | Progress::Finished { .. } | Progress::Unknown => None,
        },
        EventKind::Stopped { generation } | EventKind::Removed { generation } => ended(*generation, Outcome::Succeeded),
        EventKind::Squeeze { .. } | EventKind::Problem { .. } | EventKind::Unknown => None,
    }
}

/// The operation on this machine or environment that has no outcome yet.
pub(crate) fn in_progress(
    db: &ReadTx<'_>,
    machine: MachineId,
    environment: Option<&str>,
) -> rusqlite::Result<Option<Operation>> {
    db.select(&format!("SELECT {COLUMNS} WHERE machine = ? AND environment IS ? AND outcome IS NULL"))?
        .query_row(params![machine.as_str(), environment], row)
        .optional()
}

/// The last operation on this machine or environment.
pub(crate) fn last(
    db: &ReadTx<'_>,
    machine: MachineId,
    environment: Option<&str>,
) -> rusqlite::Result<Option<Operation>> {
    db.select(&format!("SELECT {COLUMNS} WHERE machine = ? AND environment IS ? ORDER BY number DESC LIMIT 1"))?
        .query_row(params![machine.as_str(), environment], row)
        .optional()
}

pub(crate) fn get(db: &ReadTx<'_>, id: &str) -> rusqlite::Result<Option<Operation>> {
    db.select(&format!("SELECT {COLUMNS} WHERE id = ?"))?.query_row([id], row).optional()
}

/// The newest operations, the newest first; with an owner, those on this developer's machines.
pub(crate) fn newest(db: &ReadTx<'_>, owner: Option<u32>) -> rusqlite::Result<Vec<Operation>> {
    let condition = if owner.is_some() { "owner = ?" } else { "?1 IS NULL" };
    db.select(&format!("SELECT {COLUMNS} WHERE {condition} ORDER BY number DESC LIMIT {LIST_MAX}"))?
        .query_map([owner], row)?
        .collect()
}

#[cfg(test)]
mod tests {
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
}
