//! Giving the host memory behind guest pages back.
#![allow(unsafe_code)] // madvise on guest memory

use std::ops::Range;

use rustix::mm::{Advice, madvise};
use vm_memory::{Address, GuestAddress, GuestMemory, GuestMemoryRegion};

use super::pages::whole_pages;
use crate::virtio::GuestRam;

/// Releases the host memory of `ranges` of guest memory, one call a range and region: the pages read as zeroes afterwards.
/// What is not memory of the guest is passed over. Returns the bytes released, resident or not.
pub fn release(ram: &GuestRam, ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| ram.iter().map(|region| release_in(region, range)).sum::<u64>()).sum()
}

fn release_in(region: &<GuestRam as GuestMemory>::R, range: &Range<u64>) -> u64 {
    // A file's pages are not RAM the balloon was given, and releasing them would undo the guest's writes.
    if region.file_offset().is_some() {
        return 0;
    }
    let start = region.start_addr().raw_value();
    let pages = whole_pages(range, &(start..start + region.len()));
    if pages.is_empty() {
        return 0;
    }
    let len = pages.end - pages.start;
    let Some(offset) = region.to_region_addr(GuestAddress(pages.start)) else { return 0 };
    let Ok(host) = region.get_host_address(offset) else { return 0 };
    // SAFETY: `pages` lies inside the region, whose mapping the caller's borrow keeps alive. Its contents may change at any
    // time, as the guest may write them at any time: nothing in this process holds a Rust reference into it.
    let released = unsafe { madvise(host.cast(), len as usize, Advice::LinuxDontNeed) };
    if released.is_ok() { len } else { 0 }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // one range is what is meant
mod tests {
    use super::*;
    use vm_memory::Bytes;

    const MIB: u64 = 1 << 20;

    fn ram() -> GuestRam {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 4 << 20), (GuestAddress(8 * MIB), 4 << 20)]).unwrap();
        for at in (0..4 * MIB).step_by(4096) {
            ram.write_obj(0x55_u8, GuestAddress(at)).unwrap();
            ram.write_obj(0x55_u8, GuestAddress(8 * MIB + at)).unwrap();
        }
        ram
    }

    /// Pages of the region at `start` that are in host memory, as the kernel counts them.
    fn resident(ram: &GuestRam, start: u64) -> usize {
        let host = ram.get_host_address(GuestAddress(start)).unwrap();
        let mut pages = vec![0_u8; 1024];
        // SAFETY: the range is one mapping of 4 MiB, and `pages` has a byte for each of its pages.
        assert_eq!(unsafe { libc::mincore(host.cast(), 4 << 20, pages.as_mut_ptr()) }, 0);
        pages.iter().filter(|page| **page & 1 != 0).count()
    }

    #[test]
    fn released_pages_leave_host_memory_and_read_as_zeroes() {
        let ram = ram();
        assert_eq!(resident(&ram, 0), 1024);
        assert_eq!(release(&ram, &[MIB..2 * MIB]), MIB);
        assert_eq!(resident(&ram, 0), 768);
        assert_eq!(ram.read_obj::<u8>(GuestAddress(MIB)).unwrap(), 0);
        assert_eq!(ram.read_obj::<u8>(GuestAddress(MIB - 4096)).unwrap(), 0x55);
        assert_eq!(ram.read_obj::<u8>(GuestAddress(2 * MIB)).unwrap(), 0x55);
    }

    #[test]
    fn a_range_over_a_hole_releases_both_sides() {
        let ram = ram();
        assert_eq!(release(&ram, &[0..u64::MAX]), 8 * MIB);
        assert_eq!((resident(&ram, 0), resident(&ram, 8 * MIB)), (0, 0));
    }

    #[test]
    fn what_is_not_memory_is_passed_over() {
        let ram = ram();
        assert_eq!(release(&ram, &[4 * MIB..8 * MIB, 12 * MIB..u64::MAX, 1..4096, 5..5]), 0);
        assert_eq!((resident(&ram, 0), resident(&ram, 8 * MIB)), (1024, 1024));
    }
}
