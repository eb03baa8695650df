//! Packets from the guest to the TAP.

use std::io::{self, Read};
use std::os::fd::AsFd;

use zerocopy::{FromBytes, IntoBytes};

use super::buffers;
use super::header::{HEADER, Header, admit};
use super::tap::Tap;
use crate::rate_limit::RateLimiter;
use crate::virtio::{Chain, Fault, Ring, Served};

/// The sending side.
pub(super) struct Tx {
    pub limiter: RateLimiter,
    features: u64,
    /// The TAP accepted no more packets; it reports when it does again.
    pub waiting: bool,
}

impl Tx {
    pub(super) fn new(limiter: RateLimiter) -> Self {
        Self { limiter, features: 0, waiting: false }
    }

    /// A driver starts or resumes.
    pub(super) fn start(&mut self, features: u64) {
        self.features = features;
        self.waiting = false;
    }

    /// Moves packets until there are no more, the TAP accepts no more, or the rate limit is reached. The ring bounds
    /// the work of one call.
    pub(super) fn serve(&mut self, tap: &Tap, ring: &mut Ring) -> Result<(), Fault> {
        self.waiting = false;
        ring.drain(|chain| {
            if self.limiter.blocked() || !self.send(&chain, tap)? {
                return Ok(Served::Stop);
            }
            Ok(Served::Used(0))
        })
    }

    /// Sends or drops a packet; `false` if it has to wait.
    fn send(&mut self, chain: &Chain, tap: &Tap) -> Result<bool, Fault> {
        let length = chain.readable_len() as usize;
        let mut reader = chain.reader();
        let mut bytes = [0; HEADER];
        if length < HEADER {
            return Err(chain.too_short());
        }
        reader.read_exact(&mut bytes)?;
        // Every bit pattern is valid, and the length is right.
        let header = Header::read_from_bytes(&bytes).unwrap_or_default();
        // The host gets our copy of the header, which the guest cannot change after it was checked.
        let Some(header) = admit(header, length, self.features, tap.mtu) else { return Ok(true) };
        match buffers::write(tap.as_fd(), header.as_bytes(), &reader) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.waiting = true;
                return Ok(false);
            }
            // The stack rejected it, or the interface is down: the packet is lost.
            Err(_) => {}
            Ok(_) => self.limiter.charge(length as u64),
        }
        Ok(true)
    }
}
