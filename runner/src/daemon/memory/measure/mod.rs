//! Measures the host, the machines and, through their agents, the guests.

mod follow;
mod host;
mod machine;

pub use host::measure as measure_host;
pub(crate) use machine::Watched;
