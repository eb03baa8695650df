//! Logs a problem that returns each second once.

use std::sync::{Mutex, PoisonError};

/// The present problem of one thing, logged when it changes.
#[derive(Debug)]
pub struct LogOnChange {
    what: String,
    now: Mutex<Option<String>>,
}

impl LogOnChange {
    /// No problem yet. `what` says whose it would be.
    pub fn of(what: impl Into<String>) -> Self {
        Self { what: what.into(), now: Mutex::default() }
    }

    /// Notes the present problem, if there is one. Logs it if it is another than before.
    pub fn note(&self, now: Option<String>) {
        let mut before = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if *before == now {
            return;
        }
        match &now {
            Some(problem) => tracing::warn!("{}: {problem}", self.what),
            None => tracing::info!("{}: works again", self.what),
        }
        *before = now;
    }
}
