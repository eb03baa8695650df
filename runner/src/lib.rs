//! The runner: the host daemon and the command, one binary `garret`.

pub mod accounts;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod environment_id;
pub mod host;
#[cfg(test)]
#[path = "../../integration/test_program.rs"]
mod test_program;
