//! The table of events: the newest [`EVENTS_MAX`] of each developer.

use garret_api::runner::{Event, Happening};
use rusqlite::{Connection, Row, ToSql, params};

use super::{bounded_json, environments, machines, now_ms};

/// How many events are kept of each developer; one's noise never costs another's events.
pub const EVENTS_MAX: u64 = 2048;
/// How many are read at once.
const PAGE: u32 = 128;

/// Which events a caller may see or wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All developers'.
    All,
    /// Those of the developer with this uid.
    Developer(u32),
    /// Those of one environment, and its developer's uid.
    Environment(u32, String),
}

fn row(row: &Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        id: row.get(0)?,
        at_ms: row.get(1)?,
        developer: row.get(2)?,
        environment: row.get(3)?,
        what: happening(&row.get::<_, String>(4)?),
    })
}

/// One event that only a newer runner understands must not hide the others.
fn happening(text: &str) -> Happening {
    serde_json::from_str(text).unwrap_or(Happening::Unknown)
}

/// Adds an event of this developer's. Without the machine's row none is added.
pub fn add(db: &Connection, uid: u32, environment: Option<&str>, what: &Happening) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO events (at_ms, uid, developer, environment, what)
         SELECT ?, uid, owner, ?, ? FROM machines WHERE uid = ?",
    )?
    .execute(params![now_ms(), environment, bounded_json(what)?, uid])?;
    db.prepare_cached(
        "DELETE FROM events WHERE uid = ?1
         AND id <= (SELECT id FROM events WHERE uid = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
    )?
    .execute(params![uid, EVENTS_MAX])?;
    Ok(())
}

/// A page of the events after number `after`, oldest first.
pub fn after(db: &Connection, after: u64, scope: &Scope) -> rusqlite::Result<Vec<Event>> {
    let columns = "id, at_ms, developer, environment, what";
    db.prepare_cached(&select(columns, scope, &format!("ORDER BY id LIMIT {PAGE}")))?
        .query_map(&*parameters(&after, scope), row)?
        .collect()
}

/// The number of the newest event in the scope, or 0.
pub fn last(db: &Connection, scope: &Scope) -> rusqlite::Result<u64> {
    db.prepare_cached(&select("coalesce(max(id), 0)", scope, ""))?.query_row(&*parameters(&0, scope), |row| row.get(0))
}

/// The number of the event that an environment of this id was removed by, before there was the present one; or 0. Both may
/// have had runs of the same generation.
pub fn last_removal(db: &Connection, uid: u32, id: &str) -> rusqlite::Result<u64> {
    db.prepare_cached(
        r#"SELECT coalesce(max(id), 0) FROM events
           WHERE uid = ? AND environment = ? AND what LIKE '{"type":"removed",%'"#,
    )?
    .query_row(params![uid, id], |row| row.get(0))
}

/// Whether what the scope is about is no longer there, so that no event of it will follow.
pub fn is_over(db: &Connection, scope: &Scope) -> rusqlite::Result<bool> {
    match scope {
        Scope::All => Ok(false),
        Scope::Developer(uid) => Ok(machines::get(db, *uid)?.is_none()),
        Scope::Environment(uid, id) => {
            Ok(environments::get(db, id)?.is_none_or(|environment| environment.uid != *uid || environment.removed))
        }
    }
}

/// A statement for each scope, each with an index: in one for all of them, with conditions that may be absent, SQLite
/// would read the whole table.
fn select(columns: &str, scope: &Scope, order: &str) -> String {
    let condition = match scope {
        Scope::All => "id > ?",
        Scope::Developer(_) => "id > ? AND uid = ?",
        Scope::Environment(..) => "id > ? AND uid = ? AND environment = ?",
    };
    format!("SELECT {columns} FROM events WHERE {condition} {order}")
}

fn parameters<'a>(after: &'a u64, scope: &'a Scope) -> Vec<&'a dyn ToSql> {
    match scope {
        Scope::All => vec![after],
        Scope::Developer(uid) => vec![after, uid],
        Scope::Environment(uid, id) => vec![after, uid, id],
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::memory;
    use super::*;

    #[test]
    fn every_scope_is_read_by_an_index() {
        let db = memory();
        for scope in [Scope::All, Scope::Developer(1), Scope::Environment(1, "e".into())] {
            for (columns, order) in [("id, what", "ORDER BY id LIMIT 128"), ("coalesce(max(id), 0)", "")] {
                let statement = format!("EXPLAIN QUERY PLAN {}", select(columns, &scope, order));
                let mut plan = db.prepare(&statement).unwrap();
                let steps = plan.query_map(&*parameters(&0, &scope), |row| row.get::<_, String>(3)).unwrap();
                let steps: Vec<String> = steps.map(Result::unwrap).collect();
                assert!(steps.len() == 1 && steps[0].starts_with("SEARCH events USING"), "{scope:?}: {steps:?}");
            }
        }
    }
}
