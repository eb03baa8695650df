//! A host with garret for the tests: its developers, their workspaces and its daemon.

mod command;
mod daemon;
mod developer;
mod wait;
mod workspace;

pub use command::Ran;
pub use daemon::{CONFIG, daemon_pid, end_daemon, events, kill, kill_daemon, restart_daemon, send, start_daemon};
pub use developer::{ALICE, BOB, CAROL, Developer, LOAD};
pub use wait::{SLOWER, wait_until};
pub use workspace::{IMAGE, Workspace};
