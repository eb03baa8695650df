use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::one_line;

/// The body of every answer whose status is 4xx or 5xx.
///
/// `message` is one line a person can act on: what is wrong, where, what to do. `code` is stable and meant for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// Stable, lower-case, dash-separated: `not-found`, `conflict`, `invalid`, `forbidden`, `unavailable`, `internal`, …
    pub code: String,
    /// One line for a person.
    pub message: String,
}

impl Problem {
    /// A problem with a stable `code` and one line for a person.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into() }
    }

    /// The same with code and message as [`one_line`] each: for what a peer says that is not trusted.
    pub fn clipped(self) -> Self {
        Self { code: one_line(&self.code), message: one_line(&self.message) }
    }
}
