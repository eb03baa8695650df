//! One environment, as the agent holds it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::journal::Journal;
use super::record::{Record, Store};

/// One environment: what is noted of it, and its way up while there is one.
#[derive(Debug)]
pub(super) struct Entry {
    pub id: String,
    store: Store,
    record: Mutex<Record>,
    way: Mutex<Option<Way>>,
    /// Held by whoever changes its container.
    pub gate: tokio::sync::Mutex<()>,
}

/// A way up in progress.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub journal: Arc<Journal>,
    /// Told when the environment is to be stopped or removed.
    pub cancel: Arc<Notify>,
}

impl Entry {
    pub fn new(store: Store, record: Record) -> Arc<Self> {
        let id = record.id.clone();
        Arc::new(Self { id, store, record: Mutex::new(record), way: Mutex::default(), gate: Default::default() })
    }

    /// Looks at what is noted.
    pub fn with<T>(&self, look: impl FnOnce(&Record) -> T) -> T {
        look(&lock(&self.record))
    }

    /// Changes what is noted, here and on the disk. A disk that refuses is told in the log: the environment runs on.
    pub async fn update<T>(&self, change: impl FnOnce(&mut Record) -> T) {
        let record = {
            let mut record = lock(&self.record);
            change(&mut record);
            record.clone()
        };
        let store = self.store.clone();
        let saved = tokio::task::spawn_blocking(move || store.save(&record)).await;
        if let Ok(Err(error)) = saved {
            tracing::error!("what is noted of {} could not be saved: {error}", self.id);
        }
    }

    /// The way up in progress, or a new one; true if it is new.
    pub fn begin(&self) -> (Way, bool) {
        let mut way = lock(&self.way);
        match &*way {
            Some(way) => (way.clone(), false),
            None => {
                let new = Way { journal: Journal::new(), cancel: Arc::default() };
                *way = Some(new.clone());
                (new, true)
            }
        }
    }

    /// The way up is over.
    pub fn end(&self) {
        *lock(&self.way) = None;
    }

    /// Ends the way up in progress, if there is one; whoever wants the container to himself then waits for the gate.
    pub fn cancel(&self) {
        if let Some(way) = &*lock(&self.way) {
            way.cancel.notify_one();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
