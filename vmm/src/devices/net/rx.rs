//! Packets from the TAP to the guest.
//!
//! Buffers are reserved first; then the packet is read straight into guest memory. A packet that does not fit yet
//! waits, partly in its buffers and partly in the spill, until the guest offers more buffers. It is dropped only when
//! the guest can offer no more.

use std::io::{self, Write};
use std::os::fd::AsFd;

use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use super::buffers::Buffers;
use super::header::{NUM_BUFFERS, Offloads, PACKET_MAX};
use super::tap::Tap;
use crate::rate_limit::RateLimiter;
use crate::virtio::{Chain, Fault, Ring};

/// The receiving side.
pub(super) struct Rx {
    pub limiter: RateLimiter,
    buffers: Buffers,
    /// A packet may be spread over several chains (§5.1.6.4).
    merge: bool,
    /// The largest packet that the TAP may deliver, header included.
    packet_max: usize,
    spill: Box<[u8]>,
    waiting: Option<Waiting>,
}

/// A packet that does not fit yet.
#[derive(Clone, Copy)]
struct Waiting {
    /// Its length, header included.
    length: usize,
    /// The number of its bytes that are in the buffers; the rest is in the spill.
    placed: usize,
}

/// The next step after checking for a packet.
enum Next {
    /// Check again.
    Packet,
    /// Wait: the TAP, the guest or the rate limit will wake the worker.
    Wait,
}

impl Rx {
    pub(super) fn new(limiter: RateLimiter) -> Self {
        let spill = vec![0; PACKET_MAX].into_boxed_slice();
        Self { limiter, buffers: Buffers::default(), merge: false, packet_max: PACKET_MAX, spill, waiting: None }
    }

    /// A driver starts or resumes.
    pub(super) fn start(&mut self, features: u64, mtu: u16) {
        self.merge = features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        self.packet_max = Offloads::accepted(features).packet_max(mtu.max(1500));
        self.waiting = None;
    }

    /// Moves packets until there are no more, there is no room, or the rate limit is reached. The ring bounds the work
    /// of one call.
    pub(super) fn serve(&mut self, tap: &Tap, ring: &mut Ring) -> Result<(), Fault> {
        while !self.limiter.blocked() {
            self.gather(ring)?;
            let next = match self.waiting {
                Some(waiting) => self.place_rest(waiting, ring)?,
                None if self.buffers.is_empty() => Next::Wait,
                None => self.receive(tap, ring)?,
            };
            if let Next::Wait = next {
                break;
            }
        }
        Ok(())
    }

    /// Puts the buffers back as if they had not been taken. A waiting packet is lost, as on any busy network.
    pub(super) fn stop(&mut self, ring: &mut Ring) -> Result<(), Fault> {
        self.waiting = None;
        let mut result = Ok(());
        // Remove all of them: a chain left over would be mistaken for one of the next driver.
        while let Some(chain) = self.buffers.pop_back() {
            result = result.and(ring.put_back(chain));
        }
        result
    }

    /// Takes buffers until there is room for the largest packet.
    fn gather(&mut self, ring: &mut Ring) -> Result<(), Fault> {
        let enough =
            |buffers: &Buffers, merge: bool| !buffers.is_empty() && (!merge || buffers.capacity() >= self.packet_max);
        while !enough(&self.buffers, self.merge) && !self.buffers.is_full(ring.size()) {
            let Some(chain) = ring.take()? else { break };
            self.buffers.push(chain)?;
        }
        Ok(())
    }

    fn receive(&mut self, tap: &Tap, ring: &mut Ring) -> Result<Next, Fault> {
        let placed = self.buffers.capacity();
        let spill = self.packet_max.saturating_sub(placed);
        match self.buffers.read(tap.as_fd(), &mut self.spill[..spill]) {
            Ok(length) if length <= placed => self.deliver(length, ring),
            Ok(length) => {
                self.waiting = Some(Waiting { length, placed });
                Ok(Next::Packet)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Next::Packet),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Next::Wait),
            // Too little room even for a header: the driver broke §5.1.6.3.1.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                Err(Fault::Request("a receive buffer is too small"))
            }
            // The interface is down or gone. The TAP will wake the worker when there is something to read again.
            Err(_) => Ok(Next::Wait),
        }
    }

    /// Moves the rest of a waiting packet into buffers that have arrived since.
    fn place_rest(&mut self, Waiting { length, placed }: Waiting, ring: &mut Ring) -> Result<Next, Fault> {
        if self.buffers.capacity() < length {
            let no_more_to_come =
                !self.merge || ring.in_flight() == usize::from(ring.size()) || self.buffers.is_full(ring.size());
            if no_more_to_come {
                self.waiting = None;
                return Ok(Next::Packet);
            }
            return Ok(Next::Wait);
        }
        let mut rest = &self.spill[..length - placed];
        let (mut index, mut passed) = (0, 0);
        while let Some(chain) = self.buffers.get(index).filter(|_| !rest.is_empty()) {
            if passed >= placed {
                let room = rest.len().min(chain.writable_len() as usize);
                chain.writer().write_all(&rest[..room])?;
                rest = &rest[room..];
            }
            passed += chain.writable_len() as usize;
            index += 1;
        }
        self.waiting = None;
        self.deliver(length, ring)
    }

    /// Passes the first `length` bytes of the buffers to the guest.
    fn deliver(&mut self, length: usize, ring: &mut Ring) -> Result<Next, Fault> {
        let mut used = Vec::new();
        let mut first: Option<Chain> = None;
        let mut left = length as u32;
        while left > 0 {
            let Some(chain) = self.buffers.pop() else { break };
            let written = left.min(chain.writable_len());
            left -= written;
            used.push((chain.head(), written));
            first.get_or_insert(chain);
        }
        if let Some(first) = first {
            let mut writer = first.writer();
            writer.skip(NUM_BUFFERS)?;
            writer.write_obj(&(used.len() as u16).to_le())?;
        }
        self.limiter.charge(length as u64);
        ring.complete_all(&used)?;
        Ok(Next::Packet)
    }
}
