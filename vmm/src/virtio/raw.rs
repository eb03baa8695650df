//! Converts a checked [`Chain`] to the form that other rust-vmm crates use: the virtio-fs server builds its reader and
//! writer from a `virtio_queue::DescriptorChain`, which walks descriptors in memory. It must not walk the guest's
//! descriptors, because they may have changed since they were checked. So the checked copy is written to our own
//! memory, together with the request's bytes that its device has checked: the server reads exactly the checked data.

use std::sync::Arc;

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use super::{Bitmap, Chain, Fault, QUEUE_SIZE_MAX, Reader, Segment};

/// A descriptor chain over our own table, and the memory that contains its buffers.
pub(crate) struct RawChain {
    pub descriptors: DescriptorChain<Arc<GuestMemoryMmap>>,
    /// The guest's memory, and the front.
    pub mem: GuestMemoryMmap<Bitmap>,
}

/// The largest front, in bytes: room for the longest path and two names. With one for each entry of a ring, this is 8
/// MiB.
pub(crate) const FRONT_MAX: usize = 8 << 10;

/// The address of the table, after the available ring in the first pages.
const TABLE: GuestAddress = GuestAddress(0x2000);
const AVAILABLE: GuestAddress = GuestAddress(0x10);
/// The front needs one more descriptor than a chain has, and the size of a queue is a power of two.
const ENTRIES: u16 = 2 * QUEUE_SIZE_MAX;
/// The address of the front: beyond every address a guest can have.
const FRONT: GuestAddress = GuestAddress(1 << 56);

/// Room for one chain's descriptors and front; each thread that serves chains needs one.
pub(crate) struct RawTable {
    mem: Arc<GuestMemoryMmap>,
    front: Arc<GuestRegionMmap<Bitmap>>,
}

impl RawTable {
    /// Creates a table for chains of any queue.
    pub(crate) fn new() -> std::io::Result<Self> {
        let len = TABLE.raw_value() as usize + 16 * usize::from(ENTRIES);
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len)]).map_err(std::io::Error::other)?;
        let front = MmapRegion::new(FRONT_MAX).map_err(std::io::Error::other)?;
        let front = GuestRegionMmap::new(front, FRONT).ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(Self { mem: Arc::new(mem), front: Arc::new(front) })
    }

    /// Writes `chain` to the table. Its readable bytes are `front`, 1 to [`FRONT_MAX`] bytes, then the remaining bytes
    /// of `rest`. The result must be consumed before the next call.
    pub(crate) fn lay_out(&mut self, chain: &Chain, front: &[u8], rest: &Reader<'_>) -> Result<RawChain, Fault> {
        let no_place = |_| Fault::Bug("guest memory has no place for a front");
        let mem = chain.mem().mapped().insert_region(self.front.clone()).map_err(no_place)?;
        mem.write_slice(front, FRONT)?;
        let front = Segment { addr: FRONT, len: front.len() as u32 };
        let readable = std::iter::once(front).chain(rest.segments()).map(|segment| (segment, 0));
        let writable = chain.writable().iter().map(|segment| (*segment, VRING_DESC_F_WRITE));
        let mut buffers = readable.chain(writable).enumerate().peekable();
        while let Some((at, (segment, flags))) = buffers.next() {
            let flags = flags | if buffers.peek().is_some() { VRING_DESC_F_NEXT } else { 0 };
            let descriptor = Descriptor::new(segment.addr.raw_value(), segment.len, flags as u16, at as u16 + 1);
            self.mem.write_obj(descriptor, TABLE.unchecked_add(16 * at as u64))?;
        }
        Ok(RawChain { descriptors: self.descriptors()?, mem })
    }

    fn descriptors(&self) -> Result<DescriptorChain<Arc<GuestMemoryMmap>>, Fault> {
        // A queue with one chain available, whose head is descriptor 0: flags 0, index 1, ring [0].
        self.mem.write_slice(&[0, 0, 1, 0, 0, 0], AVAILABLE)?;
        let mut queue = Queue::new(ENTRIES)?;
        queue.try_set_desc_table_address(TABLE)?;
        queue.try_set_avail_ring_address(AVAILABLE)?;
        queue.set_ready(true);
        let mut available = queue.iter(self.mem.clone())?;
        available.next().ok_or(Fault::Bug("the table of our own holds no chain"))
    }
}
