//! Logs a recurring problem once, instead of each second.

use std::sync::{Mutex, PoisonError};

/// The current problem of one thing, logged when it changes.
#[derive(Debug)]
pub(crate) struct LogOnChange {
    what: String,
    now: Mutex<Option<String>>,
}

impl LogOnChange {
    /// Starts without a problem. `what` names the thing in the log.
    pub(crate) fn of(what: impl Into<String>) -> Self {
        Self { what: what.into(), now: Mutex::default() }
    }

    /// Sets the current problem, if there is one. Logs it if it differs from the one before.
    pub(crate) fn note(&self, now: Option<String>) {
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
