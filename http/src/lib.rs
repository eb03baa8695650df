//! What the servers of the three APIs have in common: bodies and queries that are refused in one line, problems as
//! answers, answers of newline-delimited JSON, and connections that are counted.

mod connection;
mod extract;
mod lines;
mod refusal;

pub use connection::Connection;
pub use extract::{Body, Parameters};
pub use lines::{NDJSON, lines};
pub use refusal::{Refusal, no_such_method};
