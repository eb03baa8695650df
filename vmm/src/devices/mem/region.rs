//! Carries out a plan: memory slots for the guest's processors, the map for the devices, the host's memory.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use vm_memory::{Address, GuestMemoryRegion};

use super::Error;
use crate::kvm::Vm;
use crate::memory::{GuestRegion, Plugged, coalesce, release_region};

/// Makes granules of the region accessible to the guest's processors.
pub(crate) trait Slots: Send + Sync {
    /// Maps granule `index` for them, or unmaps it.
    fn set_mapped(&self, index: usize, mapped: bool) -> io::Result<()>;
}

impl Slots for Vm {
    fn set_mapped(&self, index: usize, mapped: bool) -> io::Result<()> {
        self.set_granule_mapped(index, mapped).map_err(io::Error::other)
    }
}

/// The region that this device plugs. Ranges are bytes from its beginning, whole blocks inside it.
pub(super) struct Region {
    region: GuestRegion,
    map: Arc<Plugged>,
    slots: Arc<dyn Slots>,
}

impl Region {
    pub(super) fn new(region: &GuestRegion, slots: Arc<dyn Slots>) -> Result<Self, Error> {
        let map = region.plugged().ok_or(Error::NotPluggable(region.start_addr().raw_value()))?.clone();
        Ok(Self { region: region.clone(), map, slots })
    }

    /// Its guest address.
    pub(super) fn base(&self) -> u64 {
        self.region.start_addr().raw_value()
    }

    /// The map of its plugged blocks.
    pub(super) fn map(&self) -> &Arc<Plugged> {
        &self.map
    }

    /// Plugs `range`, of which nothing is plugged. If it fails, nothing has changed.
    pub(super) fn plug(&self, range: &Range<u64>) -> io::Result<()> {
        // The slots before the map: a device may read a buffer only if the guest could have written it.
        let idle: Vec<usize> = self.map.granules_of(range).filter(|granule| !self.map.is_active(*granule)).collect();
        for (at, granule) in idle.iter().enumerate() {
            if let Err(error) = self.slots.set_mapped(*granule, true) {
                let _ = self.unmap(&idle[..at]); // only the first error is reported
                return Err(error);
            }
        }
        self.map.set(range, true);
        Ok(())
    }

    /// Unplugs `range`, even if only parts of it are plugged, and releases its host memory. On an error the guest can
    /// still access a granule, which it must not use. That granule is then already present when it is plugged again.
    pub(super) fn unplug(&self, range: &Range<u64>) -> io::Result<()> {
        let active: Vec<usize> = self.map.granules_of(range).filter(|granule| self.map.is_active(*granule)).collect();
        // The map first, then the slots: after that, no thread begins to use the memory. The host's memory last,
        // because it could be touched again before.
        self.map.set(range, false);
        let idle: Vec<usize> = active.into_iter().filter(|granule| !self.map.is_active(*granule)).collect();
        let unmapped = self.unmap(&idle);
        // Of an unmapped granule, also release memory that the guest touched though it was not plugged.
        let granules = idle.iter().map(|granule| self.map.granule_range(*granule));
        for range in coalesce(granules.chain([range.clone()]).collect()) {
            release_region(&self.region, &range);
        }
        unmapped
    }

    /// Unmaps all of `granules` that can be unmapped; returns the first error.
    fn unmap(&self, granules: &[usize]) -> io::Result<()> {
        granules.iter().map(|granule| self.slots.set_mapped(*granule, false)).fold(Ok(()), Result::and)
    }
}
