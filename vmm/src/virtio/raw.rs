//! A checked [`Chain`] in the form other rust-vmm crates take: the virtio-fs server builds its reader and writer from a
//! `virtio_queue::DescriptorChain`, which walks descriptors in memory. It must not walk the guest's: they may have changed
//! since they were checked. So the checked copy is laid out in memory of our own.

use std::sync::Arc;

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use super::{Chain, Fault, QUEUE_SIZE_MAX};

/// A descriptor chain over a table of our own; the buffers are the guest's.
pub type RawChain = DescriptorChain<Arc<GuestMemoryMmap>>;

/// The place of the table, after the available ring in the first page.
const TABLE: GuestAddress = GuestAddress(0x1000);
const AVAILABLE: GuestAddress = GuestAddress(0x10);

/// Room for one chain's descriptors; whoever serves chains one after another needs one.
pub struct RawTable {
    mem: Arc<GuestMemoryMmap>,
}

impl RawTable {
    /// A table for chains of any queue.
    pub fn new() -> std::io::Result<Self> {
        let len = TABLE.raw_value() as usize + 16 * usize::from(QUEUE_SIZE_MAX);
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len)]).map_err(std::io::Error::other)?;
        Ok(Self { mem: Arc::new(mem) })
    }

    /// Lays `chain` out. What comes back must be consumed before the next call.
    pub fn lay_out(&mut self, chain: &Chain) -> Result<RawChain, Fault> {
        let readable = chain.readable().iter().map(|segment| (segment, 0));
        let writable = chain.writable().iter().map(|segment| (segment, VRING_DESC_F_WRITE));
        let last = chain.readable().len() + chain.writable().len() - 1;
        for (at, (segment, flags)) in readable.chain(writable).enumerate() {
            let flags = flags | if at < last { VRING_DESC_F_NEXT } else { 0 };
            let descriptor = Descriptor::new(segment.addr.raw_value(), segment.len, flags as u16, at as u16 + 1);
            self.mem.write_obj(descriptor, TABLE.unchecked_add(16 * at as u64))?;
        }
        // A queue with one chain available, whose head is descriptor 0: flags 0, index 1, ring [0].
        self.mem.write_slice(&[0, 0, 1, 0, 0, 0], AVAILABLE)?;
        let mut queue = Queue::new(QUEUE_SIZE_MAX)?;
        queue.try_set_desc_table_address(TABLE)?;
        queue.try_set_avail_ring_address(AVAILABLE)?;
        queue.set_ready(true);
        let mut available = queue.iter(self.mem.clone())?;
        available.next().ok_or(Fault::Bug("the table of our own holds no chain"))
    }
}
