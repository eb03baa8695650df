//! The state shared by the balloon's worker, the vCPU threads (configuration space) and the control thread.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use garret_api::vmm::{BalloonInfo, BalloonTarget, GuestMemory};

use crate::virtio::{ConfigInterrupt, ConfigSpace};

/// Balloon pages in a MiB.
const PAGES_PER_MIB: u32 = 256;
/// The least memory that the balloon must leave to the guest, in MiB.
const GUEST_MIN_MIB: u32 = 64;

/// The configuration space (§5.5.4) and the guest's reports. Relaxed, because each number is independent of the others.
#[derive(Debug, Default)]
pub(super) struct Shared {
    target_pages: AtomicU32,
    actual_pages: AtomicU32,
    reported_bytes: AtomicU64,
    statistics: Mutex<Option<GuestMemory>>,
}

impl Shared {
    /// Counts memory the guest reported free.
    pub(super) fn reported(&self, bytes: u64) {
        self.reported_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Keeps the guest's last statistics.
    pub(super) fn set_statistics(&self, statistics: GuestMemory) {
        *self.statistics() = Some(statistics);
    }

    /// A new driver has an empty balloon and has reported nothing.
    pub(super) fn reset(&self) {
        self.actual_pages.store(0, Ordering::Relaxed);
        *self.statistics() = None;
    }

    fn statistics(&self) -> MutexGuard<'_, Option<GuestMemory>> {
        self.statistics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConfigSpace for Shared {
    fn read(&self, at: u64, out: &mut [u8]) {
        let target = self.target_pages.load(Ordering::Relaxed).to_le_bytes();
        let actual = self.actual_pages.load(Ordering::Relaxed).to_le_bytes();
        let space = [target, actual].concat();
        for (byte, value) in out.iter_mut().zip(space.iter().skip(usize::try_from(at).unwrap_or(usize::MAX))) {
            *byte = *value;
        }
    }

    fn write(&self, at: u64, data: &[u8]) {
        // The driver may write `actual`, and only as a whole.
        if let (4, [a, b, c, d]) = (at, data) {
            self.actual_pages.store(u32::from_le_bytes([*a, *b, *c, *d]), Ordering::Relaxed);
        }
    }
}

/// The target would leave the guest too little.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the balloon can take at most {most_mib} MiB of this machine's memory, not {asked_mib}")]
pub(crate) struct TargetTooLarge {
    /// The requested size.
    pub asked_mib: u32,
    /// The largest possible size.
    pub most_mib: u32,
}

/// The control thread's handle to the balloon; clones refer to the same balloon.
#[derive(Clone, Debug)]
pub(crate) struct Balloon {
    shared: Arc<Shared>,
    interrupt: ConfigInterrupt,
    memory_mib: u32,
}

impl Balloon {
    pub(super) fn new(shared: Arc<Shared>, interrupt: ConfigInterrupt, memory_mib: u32) -> Self {
        Self { shared, interrupt, memory_mib }
    }

    /// Requests this balloon size from the guest, which adapts when it can.
    pub(crate) fn set_target(&self, target: BalloonTarget) -> Result<(), TargetTooLarge> {
        let most_mib = self.memory_mib.saturating_sub(GUEST_MIN_MIB);
        if target.target_mib > most_mib {
            return Err(TargetTooLarge { asked_mib: target.target_mib, most_mib });
        }
        // At most 1,048,576 MiB, which is 2^28 pages.
        self.shared.target_pages.store(target.target_mib.saturating_mul(PAGES_PER_MIB), Ordering::Relaxed);
        self.interrupt.changed();
        Ok(())
    }

    /// The requested size, the size that the guest reports, and the guest's statistics.
    pub(crate) fn info(&self) -> BalloonInfo {
        BalloonInfo {
            target_mib: self.shared.target_pages.load(Ordering::Relaxed) / PAGES_PER_MIB,
            actual_mib: self.shared.actual_pages.load(Ordering::Relaxed) / PAGES_PER_MIB,
            reported_bytes: self.shared.reported_bytes.load(Ordering::Relaxed),
            statistics: self.shared.statistics().clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balloon(memory_mib: u32) -> (Arc<Shared>, Balloon) {
        let shared = Arc::new(Shared::default());
        (shared.clone(), Balloon::new(shared, ConfigInterrupt::default(), memory_mib))
    }

    #[test]
    fn the_driver_sees_the_target_and_tells_what_it_gave() {
        let (shared, balloon) = balloon(1024);
        let generation = balloon.interrupt.generation();
        balloon.set_target(BalloonTarget { target_mib: 100 }).unwrap();
        assert_ne!(balloon.interrupt.generation(), generation, "the driver is told");
        let mut bytes = [0; 8];
        shared.read(0, &mut bytes);
        assert_eq!(bytes, [0x00, 0x64, 0, 0, 0, 0, 0, 0]);
        shared.write(4, &(50 * 256_u32).to_le_bytes());
        shared.read(4, &mut bytes[..4]);
        assert_eq!(bytes[..4], (50 * 256_u32).to_le_bytes());
        let info = balloon.info();
        assert_eq!((info.target_mib, info.actual_mib), (100, 50));
    }

    #[test]
    fn the_target_leaves_64_mib() {
        let (_, balloon) = balloon(256);
        assert!(balloon.set_target(BalloonTarget { target_mib: 192 }).is_ok());
        let error = balloon.set_target(BalloonTarget { target_mib: 193 }).unwrap_err();
        assert_eq!(error.to_string(), "the balloon can take at most 192 MiB of this machine's memory, not 193");
        assert!(balloon.set_target(BalloonTarget { target_mib: u32::MAX }).is_err());
        assert_eq!(balloon.info().target_mib, 192);
    }

    #[test]
    fn a_driver_writes_nothing_but_actual() {
        let (shared, balloon) = balloon(256);
        balloon.set_target(BalloonTarget { target_mib: 1 }).unwrap();
        for at in [0, 1, 2, 3, 5, 8, u64::MAX] {
            shared.write(at, &[0xFF; 4]);
            shared.write(at, &[0xFF]);
        }
        shared.write(4, &[0xFF; 8]);
        let info = balloon.info();
        assert_eq!((info.target_mib, info.actual_mib), (1, 0));
        let mut bytes = [7; 4];
        shared.read(u64::MAX, &mut bytes);
        shared.read(8, &mut bytes);
        assert_eq!(bytes, [7; 4], "beyond the space nothing is written");
    }

    #[test]
    fn a_new_driver_begins_empty() {
        let (shared, balloon) = balloon(256);
        shared.write(4, &[0, 1, 0, 0]);
        shared.set_statistics(GuestMemory { free: Some(1), ..GuestMemory::default() });
        assert_eq!(balloon.info().actual_mib, 1);
        shared.reset();
        assert_eq!((balloon.info().actual_mib, balloon.info().statistics), (0, None));
    }
}
