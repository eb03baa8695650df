//! The devices. Each folder has one constructor, `new`, which opens all files of the device; a
//! [`Backend`](crate::virtio::Backend) serves its queues.

pub(crate) mod balloon;
pub(crate) mod block;
#[cfg(test)]
mod conformance;
pub(crate) mod console;
pub(crate) mod fs;
pub(crate) mod mem;
pub(crate) mod net;
pub(crate) mod pmem;
pub(crate) mod rng;
pub(crate) mod vsock;
