//! The wire types of garret's three APIs, and one client for all of them.
//!
//! | API | server | over | types |
//! |---|---|---|---|
//! | machine | `garret-vmm`, one process per machine | Unix socket | [`vmm`] |
//! | guest | `garret-agent`, in the machine | vsock port [`agent::PORT`] | [`agent`] |
//! | host | `garret daemon` | Unix socket | [`runner`] |
//!
//! Everything is HTTP/1.1 with JSON; streams are newline-delimited JSON (events) or WebSocket ([`stream`]: terminals,
//! commands). This crate contains data types; only [`client`] does I/O.

#![warn(missing_docs)]

pub mod agent;
pub mod client;
mod line;
mod machine_id;
pub mod openapi;
mod operation;
mod problem;
pub mod runner;
pub mod stream;
pub mod vmm;

pub use line::one_line;
pub use machine_id::{InvalidMachineId, MachineId};
pub use problem::{Code, PROBLEM_JSON, Problem, ProblemDetails};

/// What "idle" means in all of garret: a machine, or the guest in it, uses less than this many CPUs. Each program says over
/// which time it measures.
pub const IDLE_CPUS: f64 = 0.1;
