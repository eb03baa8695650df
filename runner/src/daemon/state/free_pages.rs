//! Reserves room for the state on a full disk: free pages inside the database, and blocks that its log already has.
//! Stops and ends of machines can then still be written. Guests' disks may share the file system and fill it.

use rusqlite::Connection;

/// The reserved room, in bytes: enough for hundreds of changes.
const RESERVED_BYTES: u64 = 4 << 20;
/// The log starts again from its beginning after this many pages, a quarter of the room. SQLite's default is all of it: a
/// change that begins near the end would then need blocks that a full disk does not have.
pub(super) const LOG_PAGES: u32 = 256;

/// Reserves the room again if less than half of it is left.
///
/// # Errors
/// The disk is full already.
pub(super) fn replenish(db: &Connection) -> rusqlite::Result<()> {
    let pages: u64 = db.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
    let page_size: u64 = db.pragma_query_value(None, "page_size", |row| row.get(0))?;
    if pages * page_size < RESERVED_BYTES / 2 { reserve(db) } else { Ok(()) }
}

/// Reserves the room. Pages of a dropped table stay in the database, and the log keeps its length; both are reused in
/// place.
///
/// # Errors
/// The disk is full already.
pub(super) fn reserve(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch(&format!(
        "DROP TABLE IF EXISTS room;
         BEGIN; CREATE TABLE room (bytes BLOB); INSERT INTO room VALUES (zeroblob({RESERVED_BYTES})); COMMIT;
         DROP TABLE room;"
    ))
}
