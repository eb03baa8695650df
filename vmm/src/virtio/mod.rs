//! The virtio core: the parts that all devices share, without code for a single device.
//!
//! A device author writes a [`Backend`]. [`Device`] gives each queue group a [`worker`] thread that owns the backend
//! and, while the device runs, its [`Ring`]s. `start` moves the rings to the worker, and `stop` returns them; reset,
//! pause and snapshot all use that same `stop`. The transport (`pci`) defines how the driver reaches the device
//! (registers, interrupts).
//!
//! All code here follows Virtual I/O Device (VIRTIO) Version 1.2; section numbers in comments refer to that document.

mod backend;
mod chain;
mod config_interrupt;
mod counters;
mod cursor;
mod device;
mod fault;
mod iov;
mod log_limiter;
mod raw;
mod reader;
mod ring;
mod session;
mod worker;
mod writer;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub(crate) use crate::memory::GuestRam;
pub(crate) use backend::{Backend, Busy, ConfigBytes, ConfigSpace, Identity, Start, VirtioDevice};
pub(crate) use chain::{Chain, Segment};
pub(crate) use config_interrupt::ConfigInterrupt;
pub(crate) use counters::Counters;
pub(crate) use device::{BuildError, Device};
pub(crate) use event_manager::{EventOps, EventSet, Events};
pub(crate) use fault::{ChainFault, Fault};
pub(crate) use log_limiter::LogLimiter;
pub(crate) use raw::{FRONT_MAX, RawTable};
pub(crate) use reader::Reader;
pub(crate) use ring::{Ring, Served, check_queue};
pub(crate) use virtio_queue::QueueState;
pub(crate) use writer::Writer;

/// The bitmap of a slice of [`GuestRam`].
type Bitmap = vhost_user_backend::bitmap::BitmapMmapRegion;

/// The largest queue a device may offer: a chain has at most as many descriptors, and `readv` takes at most 1024.
pub(crate) const QUEUE_SIZE_MAX: u16 = 1024;

/// The features that every device offers: VERSION_1, INDIRECT_DESC and EVENT_IDX (§6).
pub(crate) const COMMON_FEATURES: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1
    | 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC
    | 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
