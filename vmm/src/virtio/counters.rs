//! A device's counters, shared by its workers and the readers of its metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use garret_api::vmm::DeviceMetrics;

/// Counters since the device was built, and one gauge. Relaxed, because each is independent of the others.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    kicks: AtomicU64,
    interrupts: AtomicU64,
    chains: AtomicU64,
    bytes: AtomicU64,
    faults: AtomicU64,
    host_failures: AtomicU64,
    short_of_space: AtomicU64,
}

impl Counters {
    pub(super) fn kicks(&self, count: u64) {
        self.kicks.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn interrupt(&self) {
        self.interrupts.fetch_add(1, Ordering::Relaxed);
    }

    /// Completed chains, and the bytes that they carried in both directions.
    pub(super) fn completed(&self, chains: u64, bytes: u64) {
        self.chains.fetch_add(chains, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn fault(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn host_failure(&self) {
        self.host_failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set_short_of_space(&self, requests: u64) {
        self.short_of_space.store(requests, Ordering::Relaxed);
    }

    /// Unanswered requests that found no space on the host at least once.
    pub(crate) fn short_of_space(&self) -> u64 {
        self.short_of_space.load(Ordering::Relaxed)
    }

    pub(crate) fn metrics(&self) -> DeviceMetrics {
        DeviceMetrics {
            kicks: self.kicks.load(Ordering::Relaxed),
            interrupts: self.interrupts.load(Ordering::Relaxed),
            chains: self.chains.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            faults: self.faults.load(Ordering::Relaxed),
            host_failures: self.host_failures.load(Ordering::Relaxed),
        }
    }
}
