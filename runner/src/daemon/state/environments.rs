//! The table of environments.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use garret_api::agent::{EnvironmentPhase, EnvironmentStatus, Progress};
use garret_api::runner::{Desired, EventKind, Outcome};
use garret_api::{Code, MachineId, Problem};
use rusqlite::{OptionalExtension, Row, params};

use super::{Json, ReadTx, Text, WriteTx, bounded_json, events, json, operations};

/// One environment as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EnvironmentRow {
    pub id: String,
    /// The machine it is in.
    pub machine: MachineId,
    pub workspace: PathBuf,
    /// The devcontainer.json, if one was named.
    pub config: Option<String>,
    /// The caller's variables that the policy let through.
    pub local_env: BTreeMap<String, String>,
    pub desired: Desired,
    /// The next run removes the container first.
    pub rebuild: bool,
    /// The key of the last request to rebuild, as its caller chose it: a request with the same key is not another
    /// request.
    pub rebuild_key: Option<String>,
    /// It should be removed.
    pub removed: bool,
    /// Counts the runs.
    pub generation: u64,
    /// The generation that the status is about.
    pub observed_generation: u64,
    /// The actual state.
    pub status: EnvironmentStatus,
}

impl EnvironmentRow {
    /// Whether the status is that of the last run asked for.
    pub(crate) fn settled(&self) -> bool {
        self.generation == self.observed_generation
    }
}

const COLUMNS: &str = "id, machine, workspace, config, local_env, desired, rebuild, removed, generation,
    observed_generation, status, rebuild_key FROM environments";

fn row(row: &Row<'_>) -> rusqlite::Result<EnvironmentRow> {
    Ok(EnvironmentRow {
        id: row.get(0)?,
        machine: row.get::<_, Text<_>>(1)?.0,
        workspace: OsString::from_vec(row.get(2)?).into(),
        config: row.get(3)?,
        local_env: row.get::<_, Json<_>>(4)?.0,
        desired: row.get::<_, Json<_>>(5)?.0,
        rebuild: row.get(6)?,
        removed: row.get(7)?,
        generation: row.get(8)?,
        observed_generation: row.get(9)?,
        status: row.get::<_, Json<_>>(10)?.0,
        rebuild_key: row.get(11)?,
    })
}

/// All environments in this machine.
pub(crate) fn of_machine(db: &ReadTx<'_>, machine: MachineId) -> rusqlite::Result<Vec<EnvironmentRow>> {
    db.select(&format!("SELECT {COLUMNS} WHERE machine = ? ORDER BY id"))?.query_map([machine.as_str()], row)?.collect()
}

/// The machines that have work to do for an environment.
pub(crate) fn busy(db: &ReadTx<'_>) -> rusqlite::Result<BTreeSet<MachineId>> {
    db.select("SELECT DISTINCT machine FROM environments WHERE removed OR generation != observed_generation")?
        .query_map([], |row| Ok(row.get::<_, Text<_>>(0)?.0))?
        .collect()
}

pub(crate) fn get(db: &ReadTx<'_>, id: &str) -> rusqlite::Result<Option<EnvironmentRow>> {
    db.select(&format!("SELECT {COLUMNS} WHERE id = ?"))?.query_row([id], row).optional()
}

/// Writes the whole row.
///
/// # Errors
/// The id belongs to an environment of another machine.
pub(crate) fn put(db: &WriteTx<'_>, environment: &EnvironmentRow) -> rusqlite::Result<()> {
    let written = db
        .change(
            "INSERT INTO environments (id, machine, workspace, config, local_env, desired, rebuild, removed, generation,
                 observed_generation, status, rebuild_key)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (id) DO UPDATE SET workspace = excluded.workspace, config = excluded.config,
                 local_env = excluded.local_env, desired = excluded.desired, rebuild = excluded.rebuild,
                 removed = excluded.removed, generation = excluded.generation,
                 observed_generation = excluded.observed_generation, status = excluded.status,
                 rebuild_key = excluded.rebuild_key
             WHERE machine = excluded.machine",
        )?
        .execute(params![
            environment.id,
            environment.machine.as_str(),
            environment.workspace.as_os_str().as_bytes(),
            environment.config,
            json(&environment.local_env)?,
            json(&environment.desired)?,
            environment.rebuild,
            environment.removed,
            environment.generation,
            environment.observed_generation,
            bounded_json(&environment.status)?,
            environment.rebuild_key,
        ])?;
    if written == 1 { Ok(()) } else { Err(rusqlite::Error::StatementChangedRows(written)) }
}

/// Ends the run that `environment` is of, with the status it has and the run's one final event. Returns false, and
/// changes nothing, if that run has ended before or a newer one has replaced it.
pub(crate) fn end_run(db: &WriteTx<'_>, environment: &EnvironmentRow, last: &EventKind) -> rusqlite::Result<bool> {
    let ended = db
        .change(
            "UPDATE environments SET observed_generation = generation, status = ?4, rebuild = ?5
             WHERE id = ?1 AND machine = ?2 AND generation = ?3 AND observed_generation != generation",
        )?
        .execute(params![
            environment.id,
            environment.machine.as_str(),
            environment.generation,
            bounded_json(&environment.status)?,
            environment.rebuild,
        ])?;
    if ended == 1 {
        events::add(db, environment.machine, Some(&environment.id), last)?;
    }
    Ok(ended == 1)
}

/// Reports to the clients of the current run, if it has not ended, that it is cancelled. The caller writes a row with a
/// newer generation, or one that is settled.
pub(crate) fn cancel_run(db: &WriteTx<'_>, environment: &EnvironmentRow, why: &str) -> rusqlite::Result<()> {
    if environment.settled() {
        return Ok(());
    }
    let problem = Problem::new(Code::Cancelled, why);
    let last = failed(environment, "environment", problem);
    events::add(db, environment.machine, Some(&environment.id), &last)
}

/// Stores a status that the agent reported outside a run.
pub(crate) fn observe(
    db: &WriteTx<'_>,
    environment: &EnvironmentRow,
    status: &EnvironmentStatus,
) -> rusqlite::Result<()> {
    db.change(
        "UPDATE environments SET status = ?4
         WHERE id = ?1 AND machine = ?2 AND observed_generation = ?3 AND generation = ?3",
    )?
    .execute(params![
        environment.id,
        environment.machine.as_str(),
        environment.generation,
        bounded_json(status)?
    ])?;
    Ok(())
}

/// The machine starts: every environment that should run gets a new run, unless one is already requested.
pub(crate) fn begin_all(db: &WriteTx<'_>, machine: MachineId) -> rusqlite::Result<Vec<EnvironmentRow>> {
    let mut begun = Vec::new();
    for mut environment in of_machine(db, machine)? {
        if environment.desired != Desired::Running || environment.removed {
            continue;
        }
        environment.generation += u64::from(environment.settled());
        environment.status.phase = EnvironmentPhase::Starting;
        environment.status.problem = None;
        put(db, &environment)?;
        begun.push(environment);
    }
    Ok(begun)
}

/// The machine no longer runs, and none of its environments do. Their runs end, unless the machine starts `again` by
/// itself and they continue there.
pub(crate) fn end_all(
    db: &WriteTx<'_>,
    machine: MachineId,
    problem: Option<&Problem>,
    again: bool,
) -> rusqlite::Result<()> {
    for mut environment in of_machine(db, machine)? {
        if environment.removed {
            // Its container is removed at the machine's next start; no client waits for that.
            operations::end(db, machine, Some(&environment.id), &Outcome::Succeeded)?;
        }
        if environment.settled() {
            // A stop that failed is done now; a failed run keeps its reason.
            if environment.status.phase != EnvironmentPhase::Failed || environment.desired == Desired::Stopped {
                environment.status.phase = EnvironmentPhase::Stopped;
                environment.status.problem = problem.cloned();
                put(db, &environment)?;
            }
        } else if !again || environment.desired == Desired::Stopped {
            end_without_machine(db, environment, problem)?;
        }
    }
    Ok(())
}

/// Ends the current run in a machine that does not run: a stop is done, and a start fails.
pub(crate) fn end_without_machine(
    db: &WriteTx<'_>,
    mut environment: EnvironmentRow,
    problem: Option<&Problem>,
) -> rusqlite::Result<bool> {
    environment.status.phase = EnvironmentPhase::Stopped;
    environment.status.problem = None;
    let generation = environment.generation;
    let last = match environment.desired {
        Desired::Stopped => EventKind::Stopped { generation },
        Desired::Running => {
            let problem = problem.cloned().unwrap_or_else(|| Problem::new(Code::Stopped, "the machine was stopped"));
            environment.status.problem = Some(problem.clone());
            failed(&environment, "start machine", problem)
        }
    };
    end_run(db, &environment, &last)
}

/// Ends the current runs of a machine's environments as failed: they cannot continue. Removals stay pending.
pub(crate) fn fail_all(db: &WriteTx<'_>, machine: MachineId, problem: &Problem) -> rusqlite::Result<()> {
    for mut environment in of_machine(db, machine)?.into_iter().filter(|row| !row.removed && !row.settled()) {
        environment.status.phase = EnvironmentPhase::Failed;
        environment.status.problem = Some(problem.clone());
        end_run(db, &environment, &failed(&environment, "agent", problem.clone()))?;
    }
    Ok(())
}

fn failed(environment: &EnvironmentRow, step: &str, problem: Problem) -> EventKind {
    let progress = Progress::Failed { step: step.into(), problem };
    EventKind::Environment { generation: environment.generation, progress }
}

/// Stores a step of the run that `environment` belongs to. A run that has ended or was replaced stores no more steps.
pub(crate) fn add_progress(db: &WriteTx<'_>, environment: &EnvironmentRow, progress: Progress) -> rusqlite::Result<()> {
    let EnvironmentRow { id, machine, generation, .. } = environment;
    let runs =
        get(db, id)?.is_some_and(|row| row.machine == *machine && row.generation == *generation && !row.settled());
    match runs {
        true => events::add(db, *machine, Some(id), &EventKind::Environment { generation: *generation, progress }),
        false => Ok(()),
    }
}

/// Marks the environment for removal, and returns it. A run that has not ended is cancelled.
pub(crate) fn remove(db: &WriteTx<'_>, machine: MachineId, id: &str) -> rusqlite::Result<Option<EnvironmentRow>> {
    let Some(environment) = get(db, id)?.filter(|row| row.machine == machine) else { return Ok(None) };
    cancel_run(db, &environment, "the environment was removed")?;
    let removed = EnvironmentRow { removed: true, observed_generation: environment.generation, ..environment };
    put(db, &removed)?;
    Ok(Some(removed))
}

/// Deletes the row, unless the environment was requested again.
pub(crate) fn forget(db: &WriteTx<'_>, environment: &EnvironmentRow) -> rusqlite::Result<()> {
    let EnvironmentRow { id, machine, generation, .. } = environment;
    let gone = db
        .change("DELETE FROM environments WHERE id = ? AND machine = ? AND generation = ? AND removed")?
        .execute(params![id, machine.as_str(), generation])?;
    match gone {
        0 => Ok(()),
        _ => events::add(db, *machine, Some(id), &EventKind::Removed { generation: *generation }),
    }
}
