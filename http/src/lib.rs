//! What the servers of the three APIs have in common: bodies and queries that are refused in one line, problems as
//! answers, and answers of newline-delimited JSON.

mod extract;
mod lines;
mod refusal;

pub use extract::{Body, Parameters};
pub use lines::{NDJSON, lines};
pub use refusal::{Refusal, no_such_method};
