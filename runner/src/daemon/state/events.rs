//! The table of events: the newest [`EVENTS_MAX`] of each developer.

use garret_api::runner::{Event, Happening};
use rusqlite::{Connection, Row, params};

use super::{json, now_ms};

/// How many events are kept of each developer; one's noise never costs another's events.
pub const EVENTS_MAX: u64 = 2048;
/// How many are read at once.
const PAGE: u32 = 128;

/// Which events somebody may see or wants to see.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Only this developer's.
    pub uid: Option<u32>,
    /// Only this environment's.
    pub environment: Option<String>,
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

/// Adds an event of this developer's. One whose machine has been forgotten is nobody's.
pub fn add(db: &Connection, uid: u32, environment: Option<&str>, what: &Happening) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO events (at_ms, uid, developer, environment, what)
         SELECT ?, uid, developer, ?, ? FROM machines WHERE uid = ?",
    )?
    .execute(params![now_ms(), environment, json(what)?, uid])?;
    db.prepare_cached(
        "DELETE FROM events WHERE uid = ?1
         AND id <= (SELECT id FROM events WHERE uid = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
    )?
    .execute(params![uid, EVENTS_MAX])?;
    Ok(())
}

/// A page of the events after number `after`, oldest first.
pub fn after(db: &Connection, after: u64, scope: &Scope) -> rusqlite::Result<Vec<Event>> {
    db.prepare_cached(
        "SELECT id, at_ms, developer, environment, what FROM events
         WHERE id > ?1 AND (?2 IS NULL OR uid = ?2) AND (?3 IS NULL OR environment = ?3)
         ORDER BY id LIMIT ?4",
    )?
    .query_map(params![after, scope.uid, scope.environment, PAGE], row)?
    .collect()
}

/// The number of the newest event in the scope, or 0.
pub fn last(db: &Connection, scope: &Scope) -> rusqlite::Result<u64> {
    db.prepare_cached(
        "SELECT coalesce(max(id), 0) FROM events WHERE (?1 IS NULL OR uid = ?1) AND (?2 IS NULL OR environment = ?2)",
    )?
    .query_row(params![scope.uid, scope.environment], |row| row.get(0))
}
