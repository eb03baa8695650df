//! The devices. Each folder has one constructor, `new`, which opens all files of the device; a
//! [`Backend`](crate::virtio::Backend) serves its queues.

pub mod balloon;
pub mod block;
pub mod console;
pub mod fs;
pub mod mem;
pub mod net;
pub mod pmem;
pub mod rng;
pub mod vsock;
