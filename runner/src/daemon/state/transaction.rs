//! The two doors to the tables: a transaction that reads, and one that also writes.

use std::ops::Deref;

use rusqlite::{CachedStatement, Connection, Error};

/// A transaction that reads.
pub(crate) struct ReadTx<'c>(&'c Connection);

/// A transaction that reads and writes.
pub(crate) struct WriteTx<'c>(ReadTx<'c>);

impl<'c> ReadTx<'c> {
    pub(super) fn new(connection: &'c Connection) -> Self {
        Self(connection)
    }

    /// # Errors
    /// The statement would write, or it is invalid.
    pub(super) fn select(&self, statement: &str) -> rusqlite::Result<CachedStatement<'_>> {
        let statement = self.0.prepare_cached(statement)?;
        if statement.readonly() { Ok(statement) } else { Err(Error::InvalidQuery) }
    }
}

impl<'c> WriteTx<'c> {
    pub(super) fn new(connection: &'c Connection) -> Self {
        Self(ReadTx(connection))
    }

    /// # Errors
    /// The statement is invalid.
    pub(super) fn change(&self, statement: &str) -> rusqlite::Result<CachedStatement<'_>> {
        self.0.0.prepare_cached(statement)
    }
}

impl<'c> Deref for WriteTx<'c> {
    type Target = ReadTx<'c>;

    fn deref(&self) -> &ReadTx<'c> {
        &self.0
    }
}
