//! The table of environments.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use garret_api::Problem;
use garret_api::agent::{EnvironmentPhase, EnvironmentStatus, Progress};
use garret_api::runner::{Desired, Happening};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Json, events, json};

/// One environment, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvironmentRow {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub uid: u32,
    /// The workspace.
    pub workspace: PathBuf,
    /// The devcontainer.json, if one was named.
    pub config: Option<String>,
    /// The caller's variables that the policy let through.
    pub local_env: BTreeMap<String, String>,
    /// What should be.
    pub desired: Desired,
    /// The next run removes the container first.
    pub rebuild: bool,
    /// It should go away.
    pub removed: bool,
    /// Counts the runs.
    pub generation: u64,
    /// The generation the status speaks of.
    pub observed_generation: u64,
    /// What is.
    pub status: EnvironmentStatus,
}

impl EnvironmentRow {
    /// Whether the status is that of the last run asked for.
    pub fn settled(&self) -> bool {
        self.generation == self.observed_generation
    }
}

const COLUMNS: &str = "id, uid, workspace, config, local_env, desired, rebuild, removed, generation,
    observed_generation, status FROM environments";

fn row(row: &Row<'_>) -> rusqlite::Result<EnvironmentRow> {
    Ok(EnvironmentRow {
        id: row.get(0)?,
        uid: row.get(1)?,
        workspace: OsString::from_vec(row.get(2)?).into(),
        config: row.get(3)?,
        local_env: row.get::<_, Json<_>>(4)?.0,
        desired: row.get::<_, Json<_>>(5)?.0,
        rebuild: row.get(6)?,
        removed: row.get(7)?,
        generation: row.get(8)?,
        observed_generation: row.get(9)?,
        status: row.get::<_, Json<_>>(10)?.0,
    })
}

/// All environments of all developers.
pub fn all(db: &Connection) -> rusqlite::Result<Vec<EnvironmentRow>> {
    db.prepare_cached(&format!("SELECT {COLUMNS} ORDER BY id"))?.query_map([], row)?.collect()
}

/// Those in the machine of this uid.
pub fn of_machine(db: &Connection, uid: u32) -> rusqlite::Result<Vec<EnvironmentRow>> {
    db.prepare_cached(&format!("SELECT {COLUMNS} WHERE uid = ? ORDER BY id"))?.query_map([uid], row)?.collect()
}

/// The uids whose machines have something to do for an environment.
pub fn busy(db: &Connection) -> rusqlite::Result<BTreeSet<u32>> {
    db.prepare_cached("SELECT DISTINCT uid FROM environments WHERE removed OR generation != observed_generation")?
        .query_map([], |row| row.get(0))?
        .collect()
}

/// The one with this id.
pub fn get(db: &Connection, id: &str) -> rusqlite::Result<Option<EnvironmentRow>> {
    db.prepare_cached(&format!("SELECT {COLUMNS} WHERE id = ?"))?.query_row([id], row).optional()
}

/// Writes the whole row.
pub fn put(db: &Connection, environment: &EnvironmentRow) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO environments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")?.execute(
        params![
            environment.id,
            environment.uid,
            environment.workspace.as_os_str().as_bytes(),
            environment.config,
            json(&environment.local_env)?,
            json(&environment.desired)?,
            environment.rebuild,
            environment.removed,
            environment.generation,
            environment.observed_generation,
            json(&environment.status)?,
        ],
    )?;
    Ok(())
}

/// The run of this generation has ended in this status. A newer run takes no notice.
pub fn settle(db: &Connection, id: &str, generation: u64, status: &EnvironmentStatus) -> rusqlite::Result<()> {
    db.prepare_cached(
        "UPDATE environments SET observed_generation = ?2, status = ?3, rebuild = 0 WHERE id = ?1 AND generation = ?2",
    )?
    .execute(params![id, generation, json(status)?])?;
    Ok(())
}

/// What the agent tells outside a run.
pub fn observe(db: &Connection, id: &str, generation: u64, status: &EnvironmentStatus) -> rusqlite::Result<()> {
    db.prepare_cached(
        "UPDATE environments SET status = ?3 WHERE id = ?1 AND observed_generation = ?2 AND generation = ?2",
    )?
    .execute(params![id, generation, json(status)?])?;
    Ok(())
}

/// The machine starts: everything that should run gets a new run, unless one is already asked for.
pub fn begin_all(db: &Connection, uid: u32) -> rusqlite::Result<Vec<EnvironmentRow>> {
    let mut begun = Vec::new();
    for mut environment in of_machine(db, uid)? {
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

/// The machine no longer runs, and with it none of its environments. Whoever waits for one learns of it, unless the machine
/// starts `again` of itself and the run goes on there.
pub fn end_all(db: &Connection, uid: u32, problem: Option<&Problem>, again: bool) -> rusqlite::Result<()> {
    for mut environment in of_machine(db, uid)? {
        if !environment.settled() && environment.desired == Desired::Running {
            if again {
                continue;
            }
            let said = problem.cloned().unwrap_or_else(|| Problem::new("stopped", "the machine was stopped"));
            add_progress(db, &environment, Progress::Failed { step: "start machine".into(), problem: said })?;
        }
        environment.observed_generation = environment.generation;
        if environment.status.phase != EnvironmentPhase::Failed {
            environment.status.phase = EnvironmentPhase::Stopped;
            environment.status.problem = problem.cloned();
        }
        put(db, &environment)?;
    }
    Ok(())
}

/// A step of this environment's present run.
pub fn add_progress(db: &Connection, environment: &EnvironmentRow, progress: Progress) -> rusqlite::Result<()> {
    let what = Happening::Environment { generation: environment.generation, progress };
    events::add(db, environment.uid, Some(&environment.id), &what)
}

/// It is gone.
pub fn forget(db: &Connection, id: &str) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM environments WHERE id = ?")?.execute([id])?;
    Ok(())
}
