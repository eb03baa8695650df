//! Processes run for a client, in the guest or in a container.
//!
//! | file | what |
//! |---|---|
//! | `spec` | a complete description of a process to run |
//! | `guest` | from a request to the specification of a process in the guest |
//! | `spawn` | starts a process in the guest |
//! | `container` | starts a process in a container, through the OCI runtime |
//! | `running` | a started process in either place: streams, terminal, signals, end |
//! | `run` | runs a process to its end and collects its output |
//! | `session` | one WebSocket and one process |

mod container;
mod guest;
mod run;
mod running;
mod session;
mod spawn;
mod spec;

pub(crate) use container::clean_up;
pub(crate) use guest::process as guest_process;
pub(crate) use run::run;
pub(crate) use session::serve;
pub(crate) use spawn::{allow_oom_kill, end_with_agent};
pub(crate) use spec::{Place, ProcessSpec};
