//! Opens the database, on a full disk too.

use std::path::Path;

use anyhow::Context;
use rusqlite::{Connection, ffi};

use super::schema;

/// Opens the state in `path`; creates or migrates it as needed.
///
/// # Errors
/// The file cannot be opened, or a newer runner has written it.
pub(super) fn connect(path: &Path) -> anyhow::Result<Connection> {
    let opened = match open(path, false) {
        Err(error) if lacks_shared_index(&error) => {
            tracing::warn!("the disk is full: while this daemon runs, no other program can read {}", path.display());
            open(path, true)
        }
        opened => opened,
    };
    opened.with_context(|| format!("cannot use the state in {}", path.display()))
}

/// `exclusive`: the index of SQLite's log is in memory. Otherwise it is a file, which other programs share, and which SQLite
/// makes again at each start: a full disk has no room for that.
fn open(path: &Path, exclusive: bool) -> anyhow::Result<Connection> {
    let mut connection = Connection::open(path)?;
    if exclusive {
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    }
    schema::prepare(&mut connection)?;
    Ok(connection)
}

fn lacks_shared_index(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error);
    let codes = [ffi::SQLITE_IOERR_SHMSIZE, ffi::SQLITE_IOERR_SHMMAP, ffi::SQLITE_IOERR_SHMOPEN, ffi::SQLITE_FULL];
    error.is_some_and(|error| codes.contains(&error.extended_code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exclusive_state_needs_no_shared_index() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        for exclusive in [false, true] {
            let connection = open(&path, exclusive).unwrap();
            connection.execute_batch("CREATE TABLE IF NOT EXISTS x (y); INSERT INTO x VALUES (1)").unwrap();
            assert_eq!(dir.path().join("state.db-shm").exists(), !exclusive);
            assert!(dir.path().join("state.db-wal").exists(), "changes go into the log in both ways");
        }
    }

    #[test]
    fn only_a_missing_index_is_a_reason_to_open_exclusively() {
        let failure = |code| anyhow::Error::from(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
        assert!(lacks_shared_index(&failure(ffi::SQLITE_IOERR_SHMSIZE)));
        assert!(!lacks_shared_index(&failure(ffi::SQLITE_CORRUPT)));
    }
}
