//! Guest memory as devices access it: in the hotplug region, only the plugged part.

use std::sync::Arc;

use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::bitmap::BS;
use vm_memory::guest_memory::Result;
use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
    GuestMemoryRegionBytes, GuestRegionCollection, GuestRegionCollectionError, GuestRegionMmap, GuestUsize,
    MemoryRegionAddress, MmapRegion, VolatileSlice,
};

use super::Plugged;

type Mapped = GuestRegionMmap<BitmapMmapRegion>;

/// One contiguous piece of guest memory, mapped until the last clone is dropped.
#[derive(Clone, Debug)]
pub(crate) struct GuestRegion {
    mapped: Arc<Mapped>,
    /// `None`: all of it is always present.
    plugged: Option<Arc<Plugged>>,
}

impl GuestRegion {
    /// Memory at `base` that is always present. Returns `None` if it would extend beyond the largest address.
    pub(crate) fn new(mapping: MmapRegion<BitmapMmapRegion>, base: u64) -> Option<Self> {
        Some(Self { mapped: Arc::new(Mapped::new(mapping, GuestAddress(base))?), plugged: None })
    }

    /// The same memory as a hotplug region: nothing is present until it is plugged.
    pub(crate) fn hotplug(self) -> Self {
        let plugged = Some(Arc::new(Plugged::new(self.len())));
        Self { plugged, ..self }
    }

    /// The plugged blocks, if this is the hotplug region.
    pub(crate) fn plugged(&self) -> Option<&Arc<Plugged>> {
        self.plugged.as_ref()
    }

    /// The whole mapping, plugged or not.
    pub(super) fn mapped(&self) -> &impl GuestMemoryRegion {
        &*self.mapped
    }

    /// The address of the mapping in this process.
    pub(crate) fn host_address(&self) -> u64 {
        self.mapped.as_ptr() as u64
    }

    /// Whether the guest has all `len` bytes from `offset`.
    pub(crate) fn has(&self, offset: u64, len: u64) -> bool {
        self.plugged.as_ref().is_none_or(|plugged| plugged.is_plugged(&(offset..offset + len)))
    }
}

impl GuestMemoryRegion for GuestRegion {
    type B = BitmapMmapRegion;

    fn len(&self) -> GuestUsize {
        self.mapped.len()
    }

    fn start_addr(&self) -> GuestAddress {
        self.mapped.start_addr()
    }

    fn bitmap(&self) -> BS<'_, Self::B> {
        GuestMemoryRegion::bitmap(&*self.mapped)
    }

    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8> {
        self.mapped.get_host_address(addr)
    }

    fn file_offset(&self) -> Option<&FileOffset> {
        GuestMemoryRegion::file_offset(&*self.mapped)
    }

    /// Every access of a device uses this function.
    fn get_slice(&self, offset: MemoryRegionAddress, count: usize) -> Result<VolatileSlice<'_, BS<'_, Self::B>>> {
        let slice = GuestMemoryRegion::get_slice(&*self.mapped, offset, count)?;
        match self.has(offset.raw_value(), count as u64) {
            true => Ok(slice),
            false => Err(GuestMemoryError::InvalidGuestAddress(self.start_addr().unchecked_add(offset.raw_value()))),
        }
    }
}

impl GuestMemoryRegionBytes for GuestRegion {}

/// All memory of the guest; cheap to clone. An access to a range that is not completely present is an error.
#[derive(Clone, Debug)]
pub(crate) struct GuestRam {
    regions: GuestRegionCollection<GuestRegion>,
    mapped: GuestMemoryMmap<BitmapMmapRegion>,
}

impl GuestRam {
    /// Memory of `regions`, in the order of their addresses.
    pub(crate) fn new(regions: Vec<GuestRegion>) -> std::result::Result<Self, GuestRegionCollectionError> {
        let mapped = regions.iter().map(|region| region.mapped.clone()).collect();
        Ok(Self {
            regions: GuestRegionCollection::from_regions(regions)?,
            mapped: GuestMemoryMmap::from_arc_regions(mapped)?,
        })
    }

    /// This memory with `region` in it.
    pub(crate) fn with(&self, region: GuestRegion) -> std::result::Result<Self, GuestRegionCollectionError> {
        let mapped = self.mapped.insert_region(region.mapped.clone())?;
        Ok(Self { regions: self.regions.insert_region(Arc::new(region))?, mapped })
    }

    /// The hotplug region, if there is one.
    pub(crate) fn hotplug(&self) -> Option<&GuestRegion> {
        self.iter().find(|region| region.plugged.is_some())
    }

    /// The whole mappings, plugged or not: for a server that accepts no other type. It gets only the buffers of a
    /// checked chain.
    pub(crate) fn mapped(&self) -> &GuestMemoryMmap<BitmapMmapRegion> {
        &self.mapped
    }
}

impl GuestMemory for GuestRam {
    type R = GuestRegion;

    fn find_region(&self, addr: GuestAddress) -> Option<&GuestRegion> {
        self.regions.find_region(addr)
    }

    fn iter(&self) -> impl Iterator<Item = &GuestRegion> {
        self.regions.iter()
    }
}

#[cfg(test)]
impl GuestRam {
    /// Memory that is unmapped with its last user.
    pub(crate) fn from_ranges(ranges: &[(u64, usize)]) -> Self {
        let region = |(base, len): &(u64, usize)| {
            let mapping = vm_memory::mmap::MmapRegion::new(*len).unwrap();
            GuestRegion::new(mapping, *base).unwrap()
        };
        Self::new(ranges.iter().map(region).collect()).unwrap()
    }

    /// The same with a hotplug region.
    pub(crate) fn with_hotplug_at(&self, base: u64, len: usize) -> Self {
        let region = GuestRegion::new(vm_memory::mmap::MmapRegion::new(len).unwrap(), base).unwrap();
        self.with(region.hotplug()).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::BLOCK;
    use vm_memory::Bytes;

    const BASE: u64 = 1 << 30;

    #[test]
    fn unplugged_memory_is_not_accessible() {
        let ram = GuestRam::from_ranges(&[(0, 4096)]).with_hotplug_at(BASE, 128 << 20);
        let plugged = ram.hotplug().unwrap().plugged().unwrap().clone();
        plugged.set(&(BLOCK..2 * BLOCK), true);
        for (at, is_there) in [
            (0, true),
            (BASE, false),
            (BASE + BLOCK - 1, false), // partly
            (BASE + BLOCK, true),
            (BASE + 2 * BLOCK - 2, true),
            (BASE + 2 * BLOCK - 1, false),
            (BASE + (128 << 20), false),
        ] {
            let at = GuestAddress(at);
            assert_eq!(ram.write_obj(7_u16, at).is_ok(), is_there, "{at:?}");
            assert_eq!(ram.read_obj::<u16>(at).is_ok(), is_there, "{at:?}");
            assert_eq!(ram.check_range(at, 2), is_there, "{at:?}");
            assert_eq!(ram.get_slice(at, 2).is_ok(), is_there, "{at:?}");
        }
        plugged.set(&(BLOCK..2 * BLOCK), false);
        assert!(ram.read_obj::<u8>(GuestAddress(BASE + BLOCK)).is_err());
    }
}
