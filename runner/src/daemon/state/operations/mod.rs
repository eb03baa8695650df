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
mod tests;
