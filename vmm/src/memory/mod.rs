//! Guest memory: private and anonymous, so that transparent huge pages, cheap discards and copy-on-write clones work.

#![allow(unsafe_code, reason = "mappings")]

mod guest;
pub(crate) mod layout;
mod page;
mod plugged;
mod ranges;
mod release;

use std::io;
use std::ptr::null_mut;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::{GuestRegionCollectionError, MmapRegion};

pub(crate) use guest::{GuestRam, GuestRegion};
pub(crate) use page::{PAGE, SharedPage};
pub(crate) use plugged::{BLOCK, Plugged};
pub(crate) use ranges::coalesce;
pub(crate) use release::{release, release_region};

/// A huge page of the host.
const HUGE_PAGE: usize = 2 << 20;

/// Guest memory could not be created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot reserve {mib} MiB of guest memory: {source}; give the machine less memory or the host more")]
    Map {
        /// The machine's memory.
        mib: u64,
        source: io::Error,
    },
    #[error("cannot place guest memory at {address:#x}: {source}")]
    Place { address: u64, source: GuestRegionCollectionError },
}

/// `bytes` of RAM. No memory is allocated before the guest accesses it; huge pages are requested.
pub(crate) fn ram(bytes: u64) -> Result<GuestRam, Error> {
    let ranges = layout::ram_ranges(bytes);
    let regions = ranges.into_iter().map(|range| anonymous(range.start, range.end - range.start));
    let regions = regions.collect::<Result<Vec<_>, _>>()?;
    GuestRam::new(regions).map_err(|source| Error::Place { address: 0, source })
}

/// `ram` with a hotplug region of `bytes` at `base`, of which nothing is plugged. What is not plugged costs address
/// space only.
pub(crate) fn with_hotplug(ram: &GuestRam, base: u64, bytes: u64) -> Result<GuestRam, Error> {
    ram.with(anonymous(base, bytes)?.hotplug()).map_err(|source| Error::Place { address: base, source })
}

/// `ram` with one more region (persistent memory) in it, so that devices can reach data the guest maps from there.
pub(crate) fn with_region(ram: &GuestRam, base: u64, mapping: MmapRegion<BitmapMmapRegion>) -> Result<GuestRam, Error> {
    ram.with(region(base, mapping)?).map_err(|source| Error::Place { address: base, source })
}

fn anonymous(base: u64, bytes: u64) -> Result<GuestRegion, Error> {
    let mapping = reserve(bytes as usize).map_err(|source| Error::Map { mib: bytes >> 20, source })?;
    region(base, mapping)
}

fn region(base: u64, mapping: MmapRegion<BitmapMmapRegion>) -> Result<GuestRegion, Error> {
    let beyond = Error::Place { address: base, source: GuestRegionCollectionError::UnsortedMemoryRegions };
    GuestRegion::new(mapping, base).ok_or(beyond)
}

/// Maps `len` bytes at a multiple of [`HUGE_PAGE`]. KVM uses a huge page only if the lower bits of guest address and
/// host address match. Kernels before 6.7 do not align large mappings themselves. The mapping lasts as long as the
/// process.
fn reserve(len: usize) -> io::Result<MmapRegion<BitmapMmapRegion>> {
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { mmap_anonymous(null_mut(), len + HUGE_PAGE, protection, flags) }?.cast::<u8>();
    let aligned = start.wrapping_add(start.align_offset(HUGE_PAGE));
    // Without huge pages the machine is slower, but correct: a rejected call (a kernel without them) is not an error.
    // SAFETY: `aligned..aligned + len` lies in the mapping, which no other code knows of yet.
    let _ = unsafe { madvise(aligned.cast(), len, Advice::LinuxHugepage) };
    let (protection, flags) = (protection.bits() as i32, flags.bits() as i32);
    // SAFETY: the same range, with the protection and flags it was mapped with.
    unsafe { MmapRegion::build_raw(aligned, len, protection, flags) }.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryRegion};

    #[test]
    fn guest_and_host_agree_about_huge_pages() {
        for mib in [64, 65, 4096] {
            let ram = ram(mib << 20).unwrap();
            for region in ram.iter() {
                let offset = (region.host_address() - region.start_addr().0) as usize;
                assert_eq!(offset % HUGE_PAGE, 0, "{mib} MiB");
            }
            let last = ram.last_addr();
            ram.write_obj(7u8, last).unwrap();
            assert_eq!(ram.read_obj::<u8>(last).unwrap(), 7);
            assert!(ram.write_obj(7u16, last).is_err());
        }
    }

    #[test]
    fn a_region_more_is_reachable_where_it_was_put() {
        let ram = ram(64 << 20).unwrap();
        let base = layout::pmem_base(64 << 20, 0);
        let both = with_region(&ram, base, reserve(2 << 20).unwrap()).unwrap();
        both.write_obj(9u8, GuestAddress(base)).unwrap();
        assert!(ram.write_obj(9u8, GuestAddress(base)).is_err());
        let line = with_region(&ram, 0, reserve(2 << 20).unwrap()).unwrap_err().to_string();
        assert!(line.starts_with("cannot place guest memory at 0x0: "), "{line}");
    }
}
