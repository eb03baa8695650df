//! The interfaces: the one that a device author implements, and the one that a transport uses.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::{ConfigInterrupt, EventOps, Events, Fault, QueueState, Ring};

/// A device's handling of its queues. One worker thread owns it and calls one method at a time. It needs no knowledge
/// of threads, notification suppression or interrupts. After every call the worker signals the rings that have
/// completions.
///
/// A `Fault` or a panic puts the device into DEVICE_NEEDS_RESET; after the driver's reset it starts again with
/// [`reset`].
///
/// [`reset`]: Backend::reset
pub(crate) trait Backend: Send + 'static {
    /// Runs once, on the worker's thread, before its seccomp filter closes.
    fn prepare(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// A new driver begins: drop the state of an earlier one (connections, open files, caches). Called before
    /// [`Backend::start`], except when a paused device resumes.
    fn reset(&mut self) {}

    /// The driver is ready and accepted `features`: add the backend's own file descriptors to `ops`. They are removed
    /// when the device stops.
    fn start(&mut self, features: u64, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        let _ = (features, ops);
        Ok(())
    }

    /// The driver made buffers available in `rings[queue]`. Also called once per enabled queue just after
    /// [`Backend::start`].
    fn kicked(&mut self, queue: usize, rings: &mut [Ring]) -> Result<(), Fault>;

    /// One of the backend's own file descriptors is ready. `events` has the data with which it was added.
    fn ready(&mut self, events: Events, rings: &mut [Ring]) -> Result<(), Fault> {
        let _ = (events, rings);
        Ok(())
    }

    /// Finishes the requests in flight, before the rings are returned. Called after a fault as well.
    fn stop(&mut self, rings: &mut [Ring]) -> Result<(), Fault> {
        let _ = rings;
        Ok(())
    }
}

/// A device's configuration space (§2.5), read and written by vCPU threads.
pub(crate) trait ConfigSpace: Send + Sync {
    /// Fills `out` from offset `at`; bytes beyond the space are not changed (they are zero).
    fn read(&self, at: u64, out: &mut [u8]);

    /// Writes `data` at offset `at`; by default nothing is writable.
    fn write(&self, at: u64, data: &[u8]) {
        let _ = (at, data);
    }
}

/// A configuration space that never changes.
pub(crate) struct ConfigBytes(pub Vec<u8>);

impl ConfigSpace for ConfigBytes {
    fn read(&self, at: u64, out: &mut [u8]) {
        let from = usize::try_from(at).unwrap_or(usize::MAX).min(self.0.len());
        let count = out.len().min(self.0.len() - from);
        out[..count].copy_from_slice(&self.0[from..from + count]);
    }
}

#[derive(Clone)]
pub(crate) struct Identity {
    /// Its name in metrics, logs and thread names: `block0`, `vsock`.
    pub name: String,
    /// The virtio device type (§5).
    pub device_type: u32,
    /// The device's own feature bits; [`COMMON_FEATURES`](super::COMMON_FEATURES) are added by
    /// [`Device`](super::Device).
    pub features: u64,
    /// The largest size of each queue: powers of two, at most [`QUEUE_SIZE_MAX`](super::QUEUE_SIZE_MAX).
    pub queue_sizes: Vec<u16>,
    pub config: Arc<dyn ConfigSpace>,
}

/// The input for starting a device.
pub(crate) struct Start {
    /// The negotiated features.
    pub features: u64,
    /// One ring per queue, enabled or not.
    pub rings: Vec<Ring>,
    /// Whether the device resumes after a pause; otherwise a new driver begins.
    pub resumed: bool,
}

/// A worker did not return its rings in time. It will return them later, and the next `stop` gets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device is still finishing requests")]
pub(crate) struct Busy;

/// A device as its transport sees it.
pub(crate) trait VirtioDevice: Send {
    /// Its identity; `features` are all that it offers.
    fn identity(&self) -> &Identity;

    fn config_interrupt(&self) -> &ConfigInterrupt;

    /// Moves the rings to the workers.
    fn start(&mut self, start: Start) -> io::Result<()>;

    /// Takes the rings back and returns their states, in queue order; empty if the device does not run. Waits at most
    /// `deadline`, then returns [`Busy`]: the workers are still asked to stop, and a later call returns the states.
    fn stop(&mut self, deadline: Duration) -> Result<Vec<QueueState>, Busy>;
}
