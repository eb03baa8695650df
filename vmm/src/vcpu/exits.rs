//! Exits to user space, counted by reason.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a vCPU returned to user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Port I/O of a device.
    Io,
    /// Port I/O that no device answered.
    IoUnclaimed,
    /// Memory-mapped I/O of a device.
    Mmio,
    /// Memory-mapped I/O that no device answered.
    MmioUnclaimed,
    /// The guest was idle.
    Hlt,
    /// The VMM interrupted the vCPU.
    Interrupted,
    /// Triple fault.
    Shutdown,
    /// KVM reported an internal error.
    Internal,
    /// Anything else.
    Other,
}

const REASONS: [(Reason, &str); 9] = [
    (Reason::Io, "io"),
    (Reason::IoUnclaimed, "io_unclaimed"),
    (Reason::Mmio, "mmio"),
    (Reason::MmioUnclaimed, "mmio_unclaimed"),
    (Reason::Hlt, "hlt"),
    (Reason::Interrupted, "interrupted"),
    (Reason::Shutdown, "shutdown"),
    (Reason::Internal, "internal"),
    (Reason::Other, "other"),
];

impl Reason {
    /// Port I/O that a device answered or not.
    pub(crate) fn io(answered: bool) -> Self {
        if answered { Reason::Io } else { Reason::IoUnclaimed }
    }

    /// Memory-mapped I/O that a device answered or not.
    pub(crate) fn mmio(answered: bool) -> Self {
        if answered { Reason::Mmio } else { Reason::MmioUnclaimed }
    }
}

/// One vCPU's counters, in memory of their own so that vCPUs do not share cache lines.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct ExitCounters([AtomicU64; REASONS.len()]);

impl ExitCounters {
    pub(crate) fn count(&self, reason: Reason) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// The sum of all vCPUs' counters by name, without zeros.
pub(super) fn total(counters: &[Arc<ExitCounters>]) -> BTreeMap<String, u64> {
    let sum = |at: usize| counters.iter().map(|counters| counters.0[at].load(Ordering::Relaxed)).sum();
    REASONS.iter().map(|(reason, name)| ((*name).to_owned(), sum(*reason as usize))).filter(|(_, n)| *n > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter() {
        for (index, (reason, _)) in REASONS.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }

    #[test]
    fn totals_are_over_all_vcpus() {
        let counters = [Arc::new(ExitCounters::default()), Arc::new(ExitCounters::default())];
        counters[0].count(Reason::Io);
        counters[1].count(Reason::Io);
        counters[1].count(Reason::Hlt);
        assert_eq!(total(&counters), BTreeMap::from([("io".to_owned(), 2), ("hlt".to_owned(), 1)]));
    }
}
