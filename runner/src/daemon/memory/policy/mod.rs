//! Decides how much memory each machine should hold and by which means it is taken: pure functions of the history and of
//! what was measured. docs/memory.md has the whole.

mod activity;
mod arbiter;
mod escalation;
mod idle_swap;
mod ladder;
mod limits;
mod model;
mod pressure;
#[cfg(test)]
mod simulation;
mod targets;
mod tuning;
mod working_set;

pub use arbiter::{History, decide};
pub(super) use model::{Decision, GuestView, HostView, Notice};
pub use model::{MachineView, Order};
