//! The errors of serving a queue. Every one of them ends in DEVICE_NEEDS_RESET (§2.1), never in a panic.

use std::io;

/// Why a device cannot continue until its driver resets it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// The rings themselves are invalid: their location, or an available index that runs ahead of the ring.
    #[error("ring: {0}")]
    Ring(#[from] virtio_queue::Error),
    /// The driver offered more chains than the queue holds, or the same one twice.
    #[error("ring: {0}")]
    Offered(&'static str),
    /// The driver did not accept a feature that the device needs.
    #[error("the driver did not accept {0}")]
    Feature(&'static str),
    #[error("descriptor chain {head}: {why}")]
    Chain {
        /// The index of its head.
        head: u16,
        why: ChainFault,
    },
    /// A well-formed chain holds a request that the device cannot even answer with an error.
    #[error("request: {0}")]
    Request(&'static str),
    #[error("guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
    #[error("host: {0}")]
    Host(#[from] io::Error),
    #[error(transparent)]
    Events(#[from] event_manager::Error),
    #[error("device code: {0}")]
    Bug(&'static str),
    #[error("device code panicked: {0}")]
    Panic(String),
}

/// Which rule of §2.7.5 a descriptor chain breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChainFault {
    /// It has no descriptor: an empty or nested indirect table, or one outside memory.
    #[error("it has no descriptor")]
    Empty,
    /// It has a next descriptor that is not valid: a loop, an index or table out of bounds, or more than 4 GiB in
    /// total.
    #[error("it does not end")]
    Endless,
    #[error("it is longer than the queue")]
    TooLong,
    #[error("a descriptor has no bytes")]
    ZeroLength,
    #[error("a buffer is outside guest memory")]
    OutsideMemory,
    #[error("a buffer is in memory that is not plugged")]
    Unplugged,
    /// A buffer that the device reads after one that it writes.
    #[error("a readable buffer follows a writable one")]
    Order,
    #[error("it is too short")]
    TooShort,
}
