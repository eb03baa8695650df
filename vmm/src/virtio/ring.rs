//! The device's end of one split virtqueue (§2.7). All details of the ring's protocol are here.
//!
//! A ring has one owner, so this code needs no locks. The work per call is bounded: between two calls of a backend, a
//! ring returns at most as many chains as it has entries, then kicks itself. So a driver that never stops offering
//! chains cannot keep a worker from its other work or from stopping.

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VRING_AVAIL_F_NO_INTERRUPT};
use virtio_queue::{Error, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory};
use vmm_sys_util::eventfd::EventFd;

use super::chain::{Chain, Ticket};
use super::{Counters, Fault, GuestRam};

/// The result of serving a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// The chain is done, with this many bytes written into it.
    Used(u32),
    /// The chain cannot be served now: put it back, and serve no more chains in this call.
    Stop,
}

/// The chains that are taken and not completed, by head.
struct InFlight(Vec<Option<Lengths>>);

/// How many bytes of a chain can be read, and how many can be written.
#[derive(Clone, Copy)]
struct Lengths {
    readable: u32,
    writable: u32,
}

/// The device's end of one virtqueue. A queue that the driver did not enable returns no chains.
pub(crate) struct Ring {
    queue: Queue,
    mem: Arc<GuestRam>,
    kick: Arc<EventFd>,
    /// `None`: the driver chose no vector, because it polls.
    interrupt: Option<Arc<EventFd>>,
    counters: Arc<Counters>,
    in_flight: InFlight,
    /// Completions since the last decision about an interrupt.
    unsignaled: u16,
    /// The number of chains this ring still returns before it kicks itself.
    budget: u16,
    /// Kicks by the ring itself that have not been read from the event.
    own_kicks: u64,
    /// Whether the driver was asked to send kicks.
    notified: bool,
}

/// Checks the location of an enabled queue: size, alignment and range of all three parts (§2.7). A queue that passes
/// can be read and written without another check.
pub(crate) fn check_queue(mem: &GuestRam, state: &QueueState) -> Result<(), Error> {
    let queue = Queue::try_from(*state)?;
    let size = u64::from(queue.size());
    let parts = [(state.desc_table, 16 * size), (state.avail_ring, 6 + 2 * size), (state.used_ring, 6 + 8 * size)];
    for (addr, len) in parts {
        // `virtio_queue` uses address 0 for a ring that was never set up.
        if addr == 0 || !mem.check_range(GuestAddress(addr), len as usize) {
            return Err(Error::AddressOverflow);
        }
    }
    Ok(())
}

impl Ring {
    /// The ring of the queue in `state`. If the queue is ready, [`check_queue`] must accept it. `features` are the
    /// negotiated ones.
    pub(crate) fn new(
        mem: Arc<GuestRam>,
        state: QueueState,
        features: u64,
        kick: Arc<EventFd>,
        interrupt: Option<Arc<EventFd>>,
        counters: Arc<Counters>,
    ) -> Result<Self, Fault> {
        if state.ready {
            check_queue(&mem, &state)?;
        }
        let mut queue = Queue::try_from(state)?;
        queue.set_event_idx(features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
        let in_flight = InFlight(vec![None; usize::from(queue.size())]);
        let budget = queue.size();
        Ok(Self {
            queue,
            mem,
            kick,
            interrupt,
            counters,
            in_flight,
            unsignaled: 0,
            budget,
            own_kicks: 0,
            notified: true,
        })
    }

    pub(crate) fn mem(&self) -> &Arc<GuestRam> {
        &self.mem
    }

    /// Whether the driver enabled this queue.
    pub(crate) fn enabled(&self) -> bool {
        self.queue.ready()
    }

    /// The most chains the ring can hold.
    pub(crate) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The number of chains taken and not yet completed; never more than [`size`](Self::size).
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.0.iter().flatten().count()
    }

    /// Serves the available chains in order, then interrupts the driver if it asked for that.
    pub(crate) fn drain(&mut self, mut serve: impl FnMut(Chain) -> Result<Served, Fault>) -> Result<(), Fault> {
        while let Some(chain) = self.take()? {
            let ticket = chain.ticket();
            match serve(chain)? {
                Served::Used(written) => self.complete(ticket.head, written)?,
                Served::Stop => {
                    self.undo_take(ticket)?;
                    break;
                }
            }
        }
        self.signal()
    }

    /// Reserves a chain before its data is available. A permit that is dropped unused leaves the ring unchanged.
    pub(crate) fn reserve(&mut self) -> Result<Option<Permit<'_>>, Fault> {
        Ok(self.take()?.map(|chain| Permit { ring: self, chain: Some(chain) }))
    }

    /// Takes the next available chain, to be completed later. Returns `None` if there is none (then the driver is asked
    /// to kick for the next one), or if this call has returned as many chains as the ring has entries (then the ring
    /// has kicked itself).
    pub(crate) fn take(&mut self) -> Result<Option<Chain>, Fault> {
        if !self.queue.ready() {
            return Ok(None);
        }
        if self.budget == 0 {
            // It fails only if the counter is full: then the kick is already pending.
            self.own_kicks += u64::from(self.kick.write(1).is_ok());
            return Ok(None);
        }
        loop {
            if let Some(chain) = self.pop()? {
                return Ok(Some(chain));
            }
            // Ask for kicks, fence, and check again: the driver may have added a chain just before it could see the
            // request.
            self.notified = true;
            if !self.queue.enable_notification(&*self.mem)? {
                return Ok(None);
            }
        }
    }

    fn pop(&mut self) -> Result<Option<Chain>, Fault> {
        let Some(raw) = self.queue.iter(&*self.mem)?.next() else {
            // The iterator returns `None` both for an empty ring and for an entry that cannot be read.
            if self.has_more()? {
                self.check_next_entry()?;
            }
            return Ok(None);
        };
        let ticket = Ticket { head: raw.head_index(), position: self.queue.next_avail() };
        if self.notified {
            self.queue.disable_notification(&*self.mem)?;
            self.notified = false;
        }
        let chain = Chain::copy(raw, &self.mem, ticket, self.queue.size())?;
        let lengths = Lengths { readable: chain.readable_len(), writable: chain.writable_len() };
        self.in_flight.insert(ticket.head, lengths)?;
        self.budget -= 1;
        Ok(Some(chain))
    }

    /// The ring may lie in several blocks of memory, some of which the guest may have unplugged since.
    fn check_next_entry(&self) -> Result<(), Fault> {
        let at = 4 + 2 * u64::from(self.queue.next_avail() % self.queue.size());
        let entry = GuestAddress(self.queue.avail_ring()).unchecked_add(at);
        self.mem.load::<u16>(entry, Ordering::Relaxed)?;
        Ok(())
    }

    /// Whether the driver has made chains available that were not taken.
    pub(crate) fn has_more(&self) -> Result<bool, Fault> {
        let available = self.queue.avail_idx(&*self.mem, Ordering::Acquire)?;
        Ok(available.0 != self.queue.next_avail())
    }

    /// Puts back a chain as if it had not been taken. Only the last chain taken can be put back, so several must be put
    /// back in reverse order.
    pub(crate) fn put_back(&mut self, chain: Chain) -> Result<(), Fault> {
        self.undo_take(chain.ticket())
    }

    fn undo_take(&mut self, ticket: Ticket) -> Result<(), Fault> {
        if ticket.position != self.queue.next_avail() {
            return Err(Fault::Bug("only the chain taken last can be put back"));
        }
        self.in_flight.remove(ticket.head)?;
        self.queue.go_to_previous_position();
        Ok(())
    }

    /// Completes the taken chain `head`, into which `written` bytes were written.
    pub(crate) fn complete(&mut self, head: u16, written: u32) -> Result<(), Fault> {
        self.complete_all(&[(head, written)])
    }

    /// Completes several chains at once: the driver sees all of them or none (§5.1.6.4, a packet in merged buffers).
    pub(crate) fn complete_all(&mut self, used: &[(u16, u32)]) -> Result<(), Fault> {
        let Some(((last, last_written), before)) = used.split_last() else { return Ok(()) };
        let mut bytes = 0;
        for (head, written) in used {
            let Lengths { readable, writable } = self.in_flight.remove(*head)?;
            if writable < *written {
                return Err(Fault::Bug("more bytes were written than the chain has"));
            }
            bytes += u64::from(readable) + u64::from(*written);
        }
        // The driver does not read these elements before `add_used` publishes the index behind the last one.
        let mut next = Wrapping(self.queue.next_used());
        for (head, written) in before {
            let at = 4 + 8 * u64::from(next.0 % self.queue.size());
            // §2.7.8: the head's index, then the length.
            let element = u64::from(*written) << 32 | u64::from(*head);
            self.mem.write_obj(element.to_le(), GuestAddress(self.queue.used_ring()).unchecked_add(at))?;
            next += 1;
        }
        self.queue.set_next_used(next.0);
        self.queue.add_used(&*self.mem, *last, *last_written)?;
        // At most the ring's size: no more are in flight, and `signal` follows every call of the backend.
        self.unsignaled = self.unsignaled.saturating_add(used.len() as u16);
        self.counters.completed(used.len() as u64, bytes);
        Ok(())
    }

    /// Counts a request that the host failed.
    pub(crate) fn host_failed(&self) {
        self.counters.host_failure();
    }

    /// Sets the number of unanswered requests that found no space on the host.
    pub(crate) fn set_short_of_space(&self, requests: usize) {
        self.counters.set_short_of_space(requests as u64);
    }

    /// Interrupts the driver if it asked for that, for the completions since the last call. The worker calls it after
    /// every call of the backend; a backend needs it only to interrupt earlier.
    pub(crate) fn signal(&mut self) -> Result<(), Fault> {
        let completed = std::mem::take(&mut self.unsignaled);
        if completed == 0 || !self.wants_interrupt(completed)? {
            return Ok(());
        }
        if let Some(interrupt) = &self.interrupt {
            self.counters.interrupt();
            // It fails only if the counter is full: then the interrupt is already pending.
            let _ = interrupt.write(1);
        }
        Ok(())
    }

    /// §2.7.7.2. `Queue::needs_notification` is not used: it supports neither NO_INTERRUPT nor chains completed
    /// together.
    fn wants_interrupt(&self, completed: u16) -> Result<bool, Fault> {
        // The driver must see the index before this code reads the driver's setting: the driver writes its setting,
        // then reads the index.
        fence(Ordering::SeqCst);
        let avail = GuestAddress(self.queue.avail_ring());
        let load = |at| self.mem.load(avail.unchecked_add(at), Ordering::Relaxed).map(u16::from_le);
        if !self.queue.event_idx_enabled() {
            return Ok(u32::from(load(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        let used_event = Wrapping(load(4 + 2 * u64::from(self.queue.size()))?);
        let next_used = Wrapping(self.queue.next_used());
        // Whether the index moved past the one that the driver waits for.
        Ok(next_used - used_event - Wrapping(1) < Wrapping(completed))
    }

    /// Resets the budget for a new call of the backend.
    pub(crate) fn refill(&mut self) {
        self.budget = self.queue.size();
    }

    pub(super) fn kick_event(&self) -> &EventFd {
        &self.kick
    }

    /// Clears the kick event; counts the kicks of the driver.
    pub(super) fn take_kicks(&mut self) -> Result<(), Fault> {
        let kicks = self.kick.read()?;
        self.counters.kicks(kicks.saturating_sub(std::mem::take(&mut self.own_kicks)));
        Ok(())
    }

    /// Ends this ring and returns its state, for the next ring.
    pub(crate) fn into_state(self) -> QueueState {
        self.queue.state()
    }
}

impl InFlight {
    fn insert(&mut self, head: u16, lengths: Lengths) -> Result<(), Fault> {
        match &mut self.0[usize::from(head)] {
            Some(_) => Err(Fault::Offered("the same chain again before it was used")),
            free => {
                *free = Some(lengths);
                Ok(())
            }
        }
    }

    fn remove(&mut self, head: u16) -> Result<Lengths, Fault> {
        let taken = self.0.get_mut(usize::from(head)).and_then(Option::take);
        taken.ok_or(Fault::Bug("a chain was completed that is not in flight"))
    }
}

/// One reserved chain, see [`Ring::reserve`].
pub(crate) struct Permit<'r> {
    ring: &'r mut Ring,
    chain: Option<Chain>,
}

impl Permit<'_> {
    pub(crate) fn chain(&self) -> &Chain {
        // Only `used` and `later` take the chain, and they consume the permit.
        self.chain.as_ref().expect("a permit holds its chain")
    }

    /// Completes the chain, into which `written` bytes were written.
    pub(crate) fn used(mut self, written: u32) -> Result<(), Fault> {
        match self.chain.take() {
            Some(chain) => self.ring.complete(chain.head(), written),
            None => Ok(()),
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if let Some(chain) = self.chain.take() {
            // The permit holds the ring, so this chain is the last one taken.
            let _ = self.ring.put_back(chain);
        }
    }
}
