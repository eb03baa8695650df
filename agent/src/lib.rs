//! The guest's side of garret: PID 1 ([`init`]) and the server the host talks to ([`server`]).

mod blocking;
pub mod environment;
pub mod exec;
pub mod init;
pub mod memory;
mod processes;
pub mod server;
pub mod setup;
pub mod statistics;
pub mod users;
pub mod workspaces;

#[cfg(test)]
#[path = "../../integration/test_program.rs"]
mod test_program;
