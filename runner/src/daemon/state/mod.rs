//! The runner's persistent state, in SQLite. One thread owns the connection; all other threads send it closures.

mod connect;
pub(super) mod environments;
pub(super) mod events;
mod free_pages;
pub(super) mod machines;
pub(super) mod operations;
mod schema;
pub(super) mod scope_end;
#[cfg(test)]
pub(super) mod tests;
mod transaction;

use std::error::Error;
use std::path::Path;
use std::str::FromStr;
use std::sync::mpsc;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use garret_api::{Code, Problem};
use rusqlite::Connection;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ValueRef};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

pub(super) use environments::EnvironmentRow;
pub(super) use events::Scope;
pub(super) use machines::{MachineRow, VmmId};
pub(super) use operations::NewOperation;
pub(super) use transaction::{ReadTx, WriteTx};

/// The longest text of a guest in one row, in bytes. One thread reads the rows of all developers.
const TEXT_MAX: usize = 256 * 1024;
/// The number of jobs between two checks of the free pages.
const FREE_PAGES_INTERVAL: usize = 64;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// A handle to the state; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Store {
    jobs: mpsc::Sender<Job>,
}

impl Store {
    /// Opens the state in `path`; creates or migrates it as needed.
    ///
    /// # Errors
    /// The file cannot be opened, or a newer runner has written it.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let mut connection = connect::connect(path)?;
        if let Err(error) = free_pages::reserve(&connection) {
            tracing::error!("no room on the disk for the state in {}: {error}", path.display());
        }
        let (jobs, inbox) = mpsc::channel::<Job>();
        thread::Builder::new().name("state".into()).spawn(move || {
            for (count, job) in inbox.into_iter().enumerate() {
                job(&mut connection);
                if count % FREE_PAGES_INTERVAL == 0 {
                    // On a full disk this fails; the jobs themselves report the error.
                    let _ = free_pages::replenish(&connection);
                }
            }
        })?;
        Ok(Self { jobs })
    }

    /// Runs `job` in one transaction that reads.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&ReadTx<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            job(&ReadTx::new(&transaction))
        })
        .await
    }

    /// Runs `job` in one transaction, which is committed if the job succeeds.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&WriteTx<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            let value = job(&WriteTx::new(&transaction))?;
            transaction.commit()?;
            Ok(value)
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // A caller that was dropped needs no answer.
            let _ = answer.send(job(connection));
        });
        self.jobs.send(job).map_err(|_| StoreError::ThreadEnded)?;
        Ok(answered.await.map_err(|_| StoreError::ThreadEnded)??)
    }
}

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// A job panicked.
    #[error("the state's thread has ended")]
    ThreadEnded,
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        tracing::error!("cannot use the state: {error}");
        Problem::new(Code::Internal, format!("the runner's state failed: {error}"))
    }
}

/// The current time, in milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// A type stored as its own text.
struct Text<T>(T);

impl<T: FromStr<Err: Error + Send + Sync + 'static>> FromSql for Text<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_str()?.parse().map(Text).map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}

/// A wire type stored as JSON text.
struct Json<T>(T);

impl<T: DeserializeOwned> FromSql for Json<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        serde_json::from_str(value.as_str()?).map(Json).map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}

/// The JSON text of a wire type. Serializing a wire type cannot fail.
fn json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

/// Like [`json`], for values with text of a guest. Callers clip such text; this is the second check.
///
/// # Errors
/// It is longer than [`TEXT_MAX`].
fn bounded_json(value: &impl Serialize) -> rusqlite::Result<String> {
    let text = json(value)?;
    match text.len() {
        ..=TEXT_MAX => Ok(text),
        length => {
            let error = format!("a text of {length} bytes is too large for the state, which takes {TEXT_MAX}");
            Err(rusqlite::Error::ToSqlConversionFailure(error.into()))
        }
    }
}
