//! Guest memory: private and anonymous, so that transparent huge pages, cheap discards and copy-on-write clones work.

#![allow(unsafe_code)] // madvise on a mapping we own

pub mod layout;

use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

/// The guest's memory as devices see it; cheap to clone.
pub type GuestRam = GuestMemoryMmap<BitmapMmapRegion>;
/// One contiguous piece of it.
pub type GuestRegion = GuestRegionMmap<BitmapMmapRegion>;

/// Guest memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host refused the mapping.
    #[error("cannot reserve {mib} MiB of guest memory: {source}; give the machine less memory or the host more")]
    Map {
        /// The machine's memory.
        mib: u64,
        /// The host's answer.
        source: vm_memory::mmap::FromRangesError,
    },
    /// The root image's place is taken.
    #[error("cannot place the root image at {address:#x}: {source}")]
    Place {
        /// Where it should have gone.
        address: u64,
        /// Why not.
        source: vm_memory::GuestRegionCollectionError,
    },
}

/// `bytes` of RAM. Nothing is allocated before the guest touches it; huge pages are asked for.
pub fn ram(bytes: u64) -> Result<GuestRam, Error> {
    let ranges: Vec<_> = layout::ram_ranges(bytes)
        .into_iter()
        .map(|range| (GuestAddress(range.start), (range.end - range.start) as usize))
        .collect();
    let ram = GuestRam::from_ranges(&ranges).map_err(|source| Error::Map { mib: bytes >> 20, source })?;
    for region in ram.iter() {
        advise_huge(region);
    }
    Ok(ram)
}

/// `ram` with one more region (persistent memory) in it, so that devices can reach data the guest maps from there.
pub fn with_region(ram: &GuestRam, base: u64, mapping: MmapRegion<BitmapMmapRegion>) -> Result<GuestRam, Error> {
    let taken = |source| Error::Place { address: base, source };
    let region = GuestRegion::new(mapping, GuestAddress(base))
        .ok_or(taken(vm_memory::GuestRegionCollectionError::UnsortedMemoryRegions))?;
    ram.insert_region(region.into()).map_err(taken)
}

/// Without huge pages the machine is slower, not wrong: a refusal (a kernel without them) is not an error.
fn advise_huge(region: &GuestRegion) {
    // SAFETY: the range is exactly one mapping which `region` keeps alive, and this advice does not change its contents.
    let _ = unsafe {
        rustix::mm::madvise(region.as_ptr().cast(), region.len() as usize, rustix::mm::Advice::LinuxHugepage)
    };
}
