//! The devices. Each folder has one constructor, `new`, which opens everything the device needs; what it does with its queues
//! is a [`Backend`](crate::virtio::Backend).

pub mod balloon;
pub mod block;
pub mod console;
pub mod fs;
pub mod mem;
pub mod net;
pub mod pmem;
pub mod rng;
pub mod vsock;
