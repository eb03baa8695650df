//! MSI-X (PCI Local Bus 3.0, §6.8.2): a table of vectors in a BAR, each an event descriptor connected to KVM while it
//! is unmasked.
//!
//! A masked vector is not connected. A write to its event stays pending there, so the event *is* the pending bit. KVM
//! sends the interrupt when the vector is connected again.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::hypervisor::{Hypervisor, Msi};

/// The most vectors a function has here; the table then fits half a page, and the pending bits two words.
pub(super) const VECTORS_MAX: usize = 128;

/// Message control: MSI-X is on.
const ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
const FUNCTION_MASK: u16 = 1 << 14;
/// The bits that the guest may write in message control.
pub(super) const CONTROL_WRITABLE: u16 = ENABLE | FUNCTION_MASK;
/// Vector control: this vector is masked.
const MASKED: u32 = 1;

struct Vector {
    /// Address low, address high, data, vector control.
    entry: [u32; 4],
    event: Arc<EventFd>,
    gsi: u32,
    connected: Option<Msi>,
}

/// The vectors of one function.
pub(super) struct Msix {
    vectors: Vec<Vector>,
    control: u16,
    hypervisor: Arc<dyn Hypervisor>,
}

impl Msix {
    /// `count` vectors, 1 to [`VECTORS_MAX`], all masked.
    pub(super) fn new(count: usize, hypervisor: Arc<dyn Hypervisor>) -> io::Result<Self> {
        let vector = |_| {
            Ok(Vector {
                entry: [0, 0, 0, MASKED],
                event: Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?),
                gsi: hypervisor.allocate_gsi()?,
                connected: None,
            })
        };
        Ok(Self {
            vectors: (0..count.min(VECTORS_MAX)).map(vector).collect::<io::Result<_>>()?,
            control: 0,
            hypervisor,
        })
    }

    /// The event that raises `vector`; `None` when there is no such vector.
    pub(super) fn event(&self, vector: u16) -> Option<Arc<EventFd>> {
        self.vectors.get(usize::from(vector)).map(|vector| vector.event.clone())
    }

    /// The guest wrote message control.
    pub(super) fn set_control(&mut self, control: u16) -> io::Result<()> {
        self.control = control & CONTROL_WRITABLE;
        (0..self.vectors.len()).try_for_each(|at| self.apply(at))
    }

    /// Reads the table. A driver reads and writes aligned words of 4 or 8 bytes; anything else reads as zero.
    pub(super) fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some(words) = words(offset, data.len()) else { return };
        for (word, data) in words.zip(data.chunks_exact_mut(4)) {
            if let Some(vector) = self.vectors.get(word / 4) {
                data.copy_from_slice(&vector.entry[word % 4].to_le_bytes());
            }
        }
    }

    pub(super) fn write_table(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let Some(words) = words(offset, data.len()) else { return Ok(()) };
        for (word, data) in words.zip(data.as_chunks::<4>().0) {
            if let Some(vector) = self.vectors.get_mut(word / 4) {
                vector.entry[word % 4] = u32::from_le_bytes(*data);
                self.apply(word / 4)?;
            }
        }
        Ok(())
    }

    /// Reads the pending bits.
    pub(super) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let first = usize::try_from(offset).unwrap_or(usize::MAX).saturating_mul(8);
        for (at, byte) in data.iter_mut().enumerate() {
            let from = first.saturating_add(8 * at);
            let bits = self.vectors.iter().skip(from).take(8).enumerate();
            *byte = bits.fold(0, |byte, (bit, vector)| byte | u8::from(vector.is_pending()) << bit);
        }
    }

    /// Connects or disconnects vector `at` according to its mask.
    fn apply(&mut self, at: usize) -> io::Result<()> {
        let enabled = self.control & CONTROL_WRITABLE == ENABLE;
        let vector = &mut self.vectors[at];
        let [low, high, data, control] = vector.entry;
        let wanted =
            (enabled && control & MASKED == 0).then(|| Msi { address: u64::from(high) << 32 | u64::from(low), data });
        match (vector.connected, wanted) {
            (None, Some(msi)) => self.hypervisor.connect_interrupt(vector.gsi, &vector.event, msi)?,
            (Some(_), None) => self.hypervisor.disconnect_interrupt(vector.gsi, &vector.event)?,
            (Some(before), Some(msi)) if before != msi => self.hypervisor.reroute_interrupt(vector.gsi, msi)?,
            _ => {}
        }
        vector.connected = wanted;
        Ok(())
    }
}

impl Vector {
    fn is_pending(&self) -> bool {
        // The value read is written back at once; an interrupt raised in between is added to it.
        self.connected.is_none() && self.event.read().is_ok_and(|count| self.event.write(count).is_ok())
    }
}

/// The table words of an access, if it is one the specification allows.
fn words(offset: u64, len: usize) -> Option<std::ops::Range<usize>> {
    let first = usize::try_from(offset / 4).ok()?;
    (matches!(len, 4 | 8) && offset.is_multiple_of(len as u64)).then(|| first..first + len / 4)
}
