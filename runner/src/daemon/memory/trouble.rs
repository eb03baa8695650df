//! Trouble that comes each second is told once.

use std::sync::{Mutex, PoisonError};

/// What one thing is in trouble with at present.
#[derive(Debug)]
pub struct Trouble {
    what: String,
    now: Mutex<Option<String>>,
}

impl Trouble {
    /// None yet. `what` says whose trouble it would be.
    pub fn of(what: impl Into<String>) -> Self {
        Self { what: what.into(), now: Mutex::default() }
    }

    /// Notes how it is now; logs it if that is another thing than before.
    pub fn note(&self, now: Option<String>) {
        let mut before = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if *before == now {
            return;
        }
        match &now {
            Some(trouble) => tracing::warn!("{}: {trouble}", self.what),
            None => tracing::info!("{}: well again", self.what),
        }
        *before = now;
    }
}
