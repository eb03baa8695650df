//! One descriptor chain: walked once, checked once, copied. Later writes of the guest to the table have no effect.

use std::sync::Arc;

use virtio_queue::DescriptorChain;
use vm_memory::{Address, GuestAddress, GuestMemory, GuestMemoryRegion};

use super::{ChainFault, Fault, GuestRam};

/// One buffer of a chain, at least one byte long. It lies in one region of guest memory and was plugged when it was
/// checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Its first address.
    pub addr: GuestAddress,
    /// Its length in bytes, 1 or more.
    pub len: u32,
}

/// A descriptor chain taken from a ring. It holds no borrow: it may be sent to another thread and returned by
/// [`complete`](super::Ring::complete).
#[derive(Debug)]
pub(crate) struct Chain {
    mem: Arc<GuestRam>,
    ticket: Ticket,
    /// Readable buffers first, then the writable ones (§2.7.4.2).
    segments: Vec<Segment>,
    readable: usize,
    readable_len: u32,
    writable_len: u32,
}

/// The chain's head and its position in the available ring: enough to put the chain back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub head: u16,
    /// The ring's `next_avail` just after the chain was taken.
    pub position: u16,
}

impl Chain {
    /// Walks `raw` and copies its descriptors. `queue_size` bounds direct and indirect chains alike (§2.7.5.3.1).
    pub(super) fn copy(
        raw: DescriptorChain<&GuestRam>,
        mem: &Arc<GuestRam>,
        ticket: Ticket,
        queue_size: u16,
    ) -> Result<Self, Fault> {
        let broken = |why| Fault::Chain { head: ticket.head, why };
        let mut chain =
            Self { mem: mem.clone(), ticket, segments: Vec::new(), readable: 0, readable_len: 0, writable_len: 0 };
        // At a loop, a bad index or a bad table, the iterator ends without an error: then the last descriptor still has
        // NEXT.
        let mut continues = false;
        for descriptor in raw {
            if chain.segments.len() == usize::from(queue_size) {
                return Err(broken(ChainFault::TooLong));
            }
            chain.push(descriptor.addr(), descriptor.len(), descriptor.is_write_only()).map_err(broken)?;
            continues = descriptor.has_next();
        }
        match (chain.segments.is_empty(), continues) {
            (true, _) => Err(broken(ChainFault::Empty)),
            (false, true) => Err(broken(ChainFault::Endless)),
            (false, false) => Ok(chain),
        }
    }

    fn push(&mut self, addr: GuestAddress, len: u32, writable: bool) -> Result<(), ChainFault> {
        if len == 0 {
            return Err(ChainFault::ZeroLength);
        }
        let region = self.mem.find_region(addr).ok_or(ChainFault::OutsideMemory)?;
        let offset = addr.raw_value() - region.start_addr().raw_value();
        if region.len() - offset < u64::from(len) {
            return Err(ChainFault::OutsideMemory);
        }
        if !region.has(offset, len.into()) {
            return Err(ChainFault::Unplugged);
        }
        let total = if writable {
            &mut self.writable_len
        } else if self.writable_len > 0 {
            return Err(ChainFault::Order);
        } else {
            self.readable += 1;
            &mut self.readable_len
        };
        *total = total.checked_add(len).ok_or(ChainFault::Endless)?;
        self.segments.push(Segment { addr, len });
        Ok(())
    }

    pub(super) fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// The index of the chain's first descriptor, which [`complete`](super::Ring::complete) takes.
    pub(crate) fn head(&self) -> u16 {
        self.ticket.head
    }

    pub(crate) fn mem(&self) -> &GuestRam {
        &self.mem
    }

    /// The number of bytes the device may read.
    pub(crate) fn readable_len(&self) -> u32 {
        self.readable_len
    }

    /// The number of bytes the device may write.
    pub(crate) fn writable_len(&self) -> u32 {
        self.writable_len
    }

    /// The buffers the device may read.
    pub(crate) fn readable(&self) -> &[Segment] {
        &self.segments[..self.readable]
    }

    /// The buffers the device may write.
    pub(crate) fn writable(&self) -> &[Segment] {
        &self.segments[self.readable..]
    }

    /// The fault of a request that needs more bytes than this chain has.
    pub(crate) fn too_short(&self) -> Fault {
        Fault::Chain { head: self.head(), why: ChainFault::TooShort }
    }
}
