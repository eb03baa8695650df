//! Guest memory: private and anonymous, so that transparent huge pages, cheap discards and copy-on-write clones work.

#![allow(unsafe_code)] // mappings

pub mod layout;
mod page;

use std::io;
use std::ptr::null_mut;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

pub use page::{PAGE, SharedPage};

/// A huge page of the host.
const HUGE_PAGE: usize = 2 << 20;

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
        source: io::Error,
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
    let regions = layout::ram_ranges(bytes).into_iter().map(|range| {
        let mapping = reserve((range.end - range.start) as usize)?;
        GuestRegion::new(mapping, GuestAddress(range.start)).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    });
    let failed = |source| Error::Map { mib: bytes >> 20, source };
    let regions = regions.collect::<io::Result<Vec<_>>>().map_err(failed)?;
    GuestRam::from_regions(regions).map_err(|error| failed(io::Error::other(error)))
}

/// `len` bytes at a whole huge page. KVM uses a huge page only where guest and host address agree in their lower bits, and
/// kernels before 6.7 do not see to it themselves. The mapping lasts as long as the process, as its machine does.
fn reserve(len: usize) -> io::Result<MmapRegion<BitmapMmapRegion>> {
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { mmap_anonymous(null_mut(), len + HUGE_PAGE, protection, flags) }?.cast::<u8>();
    let aligned = start.wrapping_add(start.align_offset(HUGE_PAGE));
    // Without huge pages the machine is slower, not wrong: a refusal (a kernel without them) is not an error.
    // SAFETY: `aligned..aligned + len` lies in the mapping, which nobody else knows of yet.
    let _ = unsafe { madvise(aligned.cast(), len, Advice::LinuxHugepage) };
    let (protection, flags) = (protection.bits() as i32, flags.bits() as i32);
    // SAFETY: the same range, with the protection and flags it was mapped with.
    unsafe { MmapRegion::build_raw(aligned, len, protection, flags) }.map_err(io::Error::other)
}

/// `ram` with one more region (persistent memory) in it, so that devices can reach data the guest maps from there.
pub fn with_region(ram: &GuestRam, base: u64, mapping: MmapRegion<BitmapMmapRegion>) -> Result<GuestRam, Error> {
    let taken = |source| Error::Place { address: base, source };
    let region = GuestRegion::new(mapping, GuestAddress(base))
        .ok_or(taken(vm_memory::GuestRegionCollectionError::UnsortedMemoryRegions))?;
    ram.insert_region(region.into()).map_err(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemory, GuestMemoryRegion};

    #[test]
    fn guest_and_host_agree_about_huge_pages() {
        for mib in [64, 65, 4096] {
            let ram = ram(mib << 20).unwrap();
            for region in ram.iter() {
                let offset = region.as_ptr() as usize - region.start_addr().0 as usize;
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
        let base = layout::pmem_base(64 << 20);
        let both = with_region(&ram, base, reserve(2 << 20).unwrap()).unwrap();
        both.write_obj(9u8, GuestAddress(base)).unwrap();
        assert!(ram.write_obj(9u8, GuestAddress(base)).is_err());
        let line = with_region(&ram, 0, reserve(2 << 20).unwrap()).unwrap_err().to_string();
        assert!(line.starts_with("cannot place the root image at 0x0: "), "{line}");
    }
}
