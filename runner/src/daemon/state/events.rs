//! The table of events: the newest [`EVENTS_MAX`] of each machine.

use garret_api::MachineId;
use garret_api::runner::{Event, EventKind};
use rusqlite::{Row, ToSql, params, params_from_iter};

use super::{ReadTx, Text, WriteTx, bounded_json, now_ms, operations};

/// The number of events stored per machine; one machine's events never displace another's.
pub(crate) const EVENTS_MAX: u64 = 2048;
/// The number of events read at once.
const PAGE: u32 = 128;
/// The size in bytes at which a page takes no further event: the state's thread does nothing else meanwhile.
const PAGE_BYTES: usize = 1 << 20;

/// The events that a caller may see or wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Those of all machines.
    All,
    /// Those of the machine that the developer with this uid has, or gets.
    Owner(u32),
    /// Those of one machine.
    Machine(MachineId),
    /// Those of one environment, and its machine.
    Environment(MachineId, String),
}

fn row(row: &Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        id: row.get(0)?,
        at_ms: row.get(1)?,
        machine: row.get::<_, Text<_>>(2)?.0,
        developer: row.get(3)?,
        environment: row.get(4)?,
        what: event_kind(&row.get::<_, String>(5)?),
    })
}

/// An event that only a newer runner understands must not hide the others.
fn event_kind(text: &str) -> EventKind {
    serde_json::from_str(text).unwrap_or(EventKind::Unknown)
}

/// Adds an event of this machine, and advances the operation that it is about. Adds none if the machine's row does not
/// exist.
pub(crate) fn add(
    db: &WriteTx<'_>,
    machine: MachineId,
    environment: Option<&str>,
    what: &EventKind,
) -> rusqlite::Result<()> {
    db.change(
        "INSERT INTO events (at_ms, machine, developer, environment, what)
         SELECT ?, id, developer, ?, ? FROM machines WHERE id = ?",
    )?
    .execute(params![now_ms(), environment, bounded_json(what)?, machine.as_str()])?;
    db.change(
        "DELETE FROM events WHERE machine = ?1
         AND id <= (SELECT id FROM events WHERE machine = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
    )?
    .execute(params![machine.as_str(), EVENTS_MAX])?;
    operations::advance(db, machine, environment, what)
}

/// A page of the events after number `after`, oldest first. Empty if there are none.
pub(crate) fn after(db: &ReadTx<'_>, after: u64, scope: &Scope) -> rusqlite::Result<Vec<Event>> {
    let columns = "id, at_ms, machine, developer, environment, what";
    let mut statement = db.select(&select(columns, scope, &format!("ORDER BY id LIMIT {PAGE}")))?;
    let mut rows = statement.query(params_from_iter(parameters(after, scope)))?;
    let (mut page, mut bytes) = (Vec::new(), 0);
    while bytes < PAGE_BYTES
        && let Some(next) = rows.next()?
    {
        bytes += next.get_ref("what")?.as_str()?.len();
        page.push(row(next)?);
    }
    Ok(page)
}

/// The number of the newest event in the scope, or 0.
pub(crate) fn last(db: &ReadTx<'_>, scope: &Scope) -> rusqlite::Result<u64> {
    db.select(&select("coalesce(max(id), 0)", scope, ""))?
        .query_row(params_from_iter(parameters(0, scope)), |row| row.get(0))
}

/// The number of the event with which an earlier environment of this id was removed, or 0. The earlier and the current
/// environment may have runs of the same generation.
pub(crate) fn last_removal(db: &ReadTx<'_>, machine: MachineId, id: &str) -> rusqlite::Result<u64> {
    db.select(LAST_REMOVAL)?.query_row(params![machine.as_str(), id], |row| row.get(0))
}

/// The length is tested first: SQLite knows it without loading the text, and the output of a day is long.
const LAST_REMOVAL: &str = r#"SELECT coalesce(max(id), 0) FROM events
    WHERE machine = ? AND environment = ? AND octet_length(what) <= 200 AND what LIKE '{"type":"removed",%'"#;

/// One statement per scope, each with an index. With one statement for all scopes, with optional conditions, SQLite
/// would read the whole table.
fn select(columns: &str, scope: &Scope, order: &str) -> String {
    let condition = match scope {
        Scope::All => "id > ?",
        // An `IN` would need a sort: SQLite could not read the events of several machines in order.
        Scope::Owner(_) => "id > ? AND machine = (SELECT id FROM machines WHERE owner = ?)",
        Scope::Machine(_) => "id > ? AND machine = ?",
        Scope::Environment(..) => "id > ? AND machine = ? AND environment = ?",
    };
    format!("SELECT {columns} FROM events WHERE {condition} {order}")
}

fn parameters(after: u64, scope: &Scope) -> Vec<Box<dyn ToSql + '_>> {
    let mut parameters: Vec<Box<dyn ToSql + '_>> = vec![Box::new(after)];
    match scope {
        Scope::All => {}
        Scope::Owner(uid) => parameters.push(Box::new(uid)),
        Scope::Machine(machine) => parameters.push(Box::new(machine.as_str())),
        Scope::Environment(machine, id) => {
            parameters.extend([Box::new(machine.as_str()) as Box<dyn ToSql>, Box::new(id)]);
        }
    }
    parameters
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use garret_api::agent::Progress;

    use super::super::machines;
    use super::super::tests::{machine, memory};
    use super::*;
    use crate::daemon::testing::id;

    /// Adds `count` output events of environment `e`, each with this text.
    fn add_output(db: &WriteTx<'_>, count: u64, text: &str) {
        machines::put(db, &machine(7)).unwrap();
        let progress = Progress::Output { step: "s".into(), text: text.into() };
        let what = EventKind::Environment { generation: 1, progress };
        (0..count).for_each(|_| add(db, id(7), Some("e"), &what).unwrap());
    }

    #[test]
    fn a_page_of_large_events_ends_early_and_the_next_continues() {
        let db = memory();
        add_output(&db, 20, &"x".repeat(200_000));
        let scope = Scope::Environment(id(7), "e".into());
        let (mut ids, mut last) = (Vec::new(), 0);
        loop {
            let page = after(&db, last, &scope).unwrap();
            let Some(newest) = page.last() else { break };
            assert!(page.len() <= 6, "{} events in a page", page.len());
            last = newest.id;
            ids.extend(page.iter().map(|event| event.id));
        }
        assert!(ids.len() == 20 && ids.is_sorted(), "{ids:?}");
    }

    #[test]
    fn last_removal_is_found_and_reads_no_output() {
        let db = memory();
        let fastest = |statement: &str| {
            let mut statement = db.select(statement).unwrap();
            let mut once = || {
                let begun = Instant::now();
                let found: u64 = statement.query_row(params![id(7).as_str(), "e"], |row| row.get(0)).unwrap();
                assert_eq!(found, 0);
                begun.elapsed()
            };
            (0..5).map(|_| once()).min().unwrap_or(Duration::MAX)
        };
        add_output(&db, EVENTS_MAX, &"\u{1}".repeat(32_000));
        let unbounded = LAST_REMOVAL.replace("octet_length(what) <= 200", "true");
        assert_ne!(unbounded, LAST_REMOVAL);
        let (few, all) = (fastest(LAST_REMOVAL), fastest(&unbounded));
        assert!(few * 8 < all, "{few:?} where reading everything takes {all:?}");

        assert_eq!(last_removal(&db, id(7), "e").unwrap(), 0);
        add(&db, id(7), Some("e"), &EventKind::Removed { generation: u64::MAX >> 1 }).unwrap();
        let removal = last(&db, &Scope::All).unwrap();
        add_output(&db, 3, "x");
        assert_eq!(last_removal(&db, id(7), "e").unwrap(), removal);
    }

    #[test]
    fn every_scope_is_read_by_an_index() {
        let db = memory();
        for scope in [Scope::All, Scope::Owner(1), Scope::Machine(id(1)), Scope::Environment(id(1), "e".into())] {
            for (columns, order) in [("id, what", "ORDER BY id LIMIT 128"), ("coalesce(max(id), 0)", "")] {
                let statement = format!("EXPLAIN QUERY PLAN {}", select(columns, &scope, order));
                let mut plan = db.select(&statement).unwrap();
                let steps =
                    plan.query_map(params_from_iter(parameters(0, &scope)), |row| row.get::<_, String>(3)).unwrap();
                let steps: Vec<String> = steps.map(Result::unwrap).collect();
                assert!(steps[0].starts_with("SEARCH events USING"), "{scope:?}: {steps:?}");
                let indexed = |step: &String| step.starts_with("SEARCH") || step.starts_with("SCALAR SUBQUERY");
                assert!(steps.iter().all(indexed), "{scope:?}: {steps:?}");
            }
        }
    }
}
