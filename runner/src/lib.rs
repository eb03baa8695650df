//! The runner: the host daemon and the command, one binary `garret`.

mod accounts;
mod cli;
mod config;
mod daemon;
mod environment_id;
mod host;

pub use cli::main;
/// What the benches run without a daemon.
pub mod policy {
    pub use crate::daemon::{History, MachineView, Order, decide, measure_host};
    pub use crate::host::cgroup;
}
