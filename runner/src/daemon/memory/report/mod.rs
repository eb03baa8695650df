//! What others see of the memory loop: figures, metrics, and lines of the log.

mod log_on_change;
mod metrics;
mod snapshot;

pub(crate) use log_on_change::LogOnChange;
pub(crate) use metrics::render as render_metrics;
pub(crate) use snapshot::{Snapshot, host_memory, machine_memory};
