//! The state of virtio-mem that is shared by the device's worker, the vCPU threads (configuration space) and the
//! control thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use garret_api::vmm::{MemoryInfo, MemoryTarget};

use super::protocol::Config;
use super::region::Region;
use crate::memory::{BLOCK, Plugged};
use crate::virtio::{ConfigInterrupt, ConfigSpace};

/// The size of a block, in MiB.
const BLOCK_MIB: u32 = (BLOCK >> 20) as u32;

/// The configuration space (§5.15.4) and the data it is computed from.
#[derive(Debug)]
pub(super) struct Shared {
    base: u64,
    map: Arc<Plugged>,
    requested: AtomicU64,
    refused: AtomicU64,
}

impl Shared {
    /// `requested_mib` of `region` may be plugged from the start.
    pub(super) fn new(region: &Region, requested_mib: u32) -> Self {
        let requested = AtomicU64::new(u64::from(requested_mib) << 20);
        Self { base: region.base(), map: region.map().clone(), requested, refused: AtomicU64::new(0) }
    }

    /// The number of bytes that should be plugged.
    pub(super) fn requested(&self) -> u64 {
        self.requested.load(Ordering::Acquire)
    }

    /// Counts a request that was refused.
    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}

impl ConfigSpace for Shared {
    fn read(&self, at: u64, out: &mut [u8]) {
        let config = Config {
            block_size: BLOCK,
            address: self.base,
            region_size: self.map.size(),
            // Independent of the requested size: it costs the driver nothing.
            usable_region_size: self.map.size(),
            plugged_size: self.map.bytes(),
            requested_size: self.requested(),
        };
        let space = config.bytes();
        for (byte, value) in out.iter_mut().zip(space.iter().skip(usize::try_from(at).unwrap_or(usize::MAX))) {
            *byte = *value;
        }
    }
}

/// Why a target was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TargetRefused {
    #[error("this machine has no memory to plug: start it from a configuration with `hotplug`")]
    NoDevice,
    #[error("requested_mib: {0} is not a multiple of {BLOCK_MIB}")]
    NotBlocks(u32),
    #[error("requested_mib: {asked_mib} is not between 0 and {most_mib}, the size of the region")]
    TooLarge {
        /// The requested size.
        asked_mib: u32,
        /// The largest possible size.
        most_mib: u32,
    },
}

/// The control thread's handle to the device; clones refer to the same device.
#[derive(Clone, Debug)]
pub(crate) struct Hotplug {
    shared: Arc<Shared>,
    interrupt: ConfigInterrupt,
}

impl Hotplug {
    pub(super) fn new(shared: Arc<Shared>, interrupt: ConfigInterrupt) -> Self {
        Self { shared, interrupt }
    }

    /// Sets how much memory should be plugged. A running driver is notified at once; a driver that starts later reads
    /// it.
    pub(crate) fn set_target(&self, target: MemoryTarget) -> Result<(), TargetRefused> {
        let (asked_mib, most_mib) = (target.requested_mib, self.size_mib());
        if asked_mib > most_mib {
            return Err(TargetRefused::TooLarge { asked_mib, most_mib });
        }
        if !asked_mib.is_multiple_of(BLOCK_MIB) {
            return Err(TargetRefused::NotBlocks(asked_mib));
        }
        self.request(u64::from(asked_mib) << 20);
        Ok(())
    }

    /// Requests the whole region to be plugged.
    pub(crate) fn allow_all(&self) {
        self.request(self.shared.map.size());
    }

    fn request(&self, bytes: u64) {
        self.shared.requested.store(bytes, Ordering::Release);
        self.interrupt.changed();
    }

    /// The device's state, without the memory that is always present.
    pub(crate) fn info(&self) -> MemoryInfo {
        MemoryInfo {
            boot_mib: 0,
            size_mib: self.size_mib(),
            requested_mib: (self.shared.requested() >> 20) as u32,
            plugged_mib: (self.shared.map.bytes() >> 20) as u32,
            driver: self.interrupt.has_listener(),
            refused: self.shared.refused.load(Ordering::Relaxed),
        }
    }

    fn size_mib(&self) -> u32 {
        (self.shared.map.size() >> 20) as u32 // at most 1,048,576
    }
}
