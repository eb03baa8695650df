//! The guest's side of garret: PID 1 (`init`) and the server the host talks to (`server`).

mod blocking;
mod cli;
mod environment;
mod exec;
mod init;
mod memory;
mod processes;
mod server;
mod setup;
mod users;
mod workspaces;

pub use cli::main;
pub use server::{Agent, serve};
