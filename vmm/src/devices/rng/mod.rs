//! virtio-rng (virtio 1.2, §5.4): fills the guest's buffers with the host's random numbers.

#[cfg(test)]
pub(crate) mod tests;

use std::io::{self, Write};
use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use crate::seccomp::Role;
use crate::virtio::{Backend, BuildError, Chain, ConfigBytes, Device, Fault, Identity, Ring, Served};

/// The most bytes that one request gets. The driver reads the number from the used ring and requests more.
const REQUEST_MAX: usize = 64 << 10;
/// One `getrandom` call at a time; up to this size, no signal cuts it short (random(7)).
const PIECE: usize = 256;

/// Builds the device.
pub(crate) fn new() -> Result<Device, BuildError> {
    let identity = Identity {
        name: "rng".into(),
        device_type: VIRTIO_ID_RNG,
        features: 0,
        queue_sizes: vec![64],
        config: Arc::new(ConfigBytes(Vec::new())),
    };
    Device::new(identity, vec![(Rng, 0..1)], Role::Quiet)
}

struct Rng;

impl Backend for Rng {
    fn kicked(&mut self, queue: usize, rings: &mut [Ring]) -> Result<(), Fault> {
        rings[queue].drain(|chain| Ok(Served::Used(fill(&chain)?)))
    }
}

fn fill(chain: &Chain) -> Result<u32, Fault> {
    // §5.4.6.1: the driver must not offer readable buffers.
    if chain.readable_len() > 0 {
        return Err(Fault::Request("a buffer to fill with random numbers is read-only"));
    }
    let mut writer = chain.writer();
    let mut left = writer.remaining().min(REQUEST_MAX);
    let mut piece = [0; PIECE];
    while left > 0 {
        let count = getrandom(&mut piece[..left.min(PIECE)], GetRandomFlags::empty()).map_err(io::Error::from)?;
        writer.write_all(&piece[..count])?;
        left -= count;
    }
    Ok(writer.written())
}
