//! Returns the host memory behind guest pages to the host.
#![allow(unsafe_code, reason = "madvise on guest memory")]

use std::ops::Range;

use rustix::mm::{Advice, madvise};
use vm_memory::{Address, GuestMemory, GuestMemoryRegion, MemoryRegionAddress};

use super::ranges::whole_pages;
use super::{GuestRam, GuestRegion};

/// Releases the host memory of `ranges` of guest memory, with one call per range and region; the pages read as zeroes
/// afterwards. Parts outside guest memory are skipped. Returns the number of bytes released, resident or not.
pub(crate) fn release(ram: &GuestRam, ranges: &[Range<u64>]) -> u64 {
    pieces(ram, ranges).map(|(region, pages)| release_region(region, &pages)).sum()
}

/// The region and the whole pages of each call, in bytes from the region's beginning.
fn pieces<'r>(ram: &'r GuestRam, ranges: &'r [Range<u64>]) -> impl Iterator<Item = (&'r GuestRegion, Range<u64>)> {
    // The pages of a file are not RAM, and releasing them would undo the guest's writes.
    let anonymous = || ram.iter().filter(|region| region.file_offset().is_none());
    let pieces = ranges.iter().flat_map(move |range| {
        anonymous().map(move |region| {
            let start = region.start_addr().raw_value();
            let pages = whole_pages(range, &(start..start + region.len()));
            (region, pages.start - start..pages.end - start)
        })
    });
    pieces.filter(|(_, pages)| !pages.is_empty())
}

/// Releases the whole pages `pages` of `region`, in bytes from its beginning. Returns their bytes, or 0 if the host
/// rejects the call.
pub(crate) fn release_region(region: &GuestRegion, pages: &Range<u64>) -> u64 {
    let len = pages.end - pages.start;
    // Checks both ends, regardless of what is plugged.
    let Ok(slice) = region.mapped().get_slice(MemoryRegionAddress(pages.start), len as usize) else { return 0 };
    let host = slice.ptr_guard_mut().as_ptr();
    // SAFETY: the slice lies inside the region, whose mapping the caller's borrow keeps alive. Its contents may change
    // at any time, as the guest may write them at any time: nothing in this process holds a Rust reference into it.
    let released = unsafe { madvise(host.cast(), len as usize, Advice::LinuxDontNeed) };
    if released.is_ok() { len } else { 0 }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "one range is what is meant")]
mod tests {
    use super::*;
    use crate::memory::coalesce;
    use vm_memory::{Bytes, GuestAddress};

    const MIB: u64 = 1 << 20;

    fn ram() -> GuestRam {
        let ram = GuestRam::from_ranges(&[(0, 4 << 20), (8 * MIB, 4 << 20)]);
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
    fn ranges_outside_memory_are_skipped() {
        let ram = ram();
        assert_eq!(release(&ram, &[4 * MIB..8 * MIB, 12 * MIB..u64::MAX, 1..4096, 5..5]), 0);
        assert_eq!((resident(&ram, 0), resident(&ram, 8 * MIB)), (1024, 1024));
    }

    #[test]
    fn a_report_of_neighbors_is_one_call() {
        let ram = GuestRam::from_ranges(&[(0, 256 << 20)]);
        let report = (0..32).rev().map(|at| 2 * MIB * (at + 3)..2 * MIB * (at + 4)).collect();
        assert_eq!(pieces(&ram, &coalesce(report)).count(), 1);
    }

    #[test]
    fn pages_of_the_hotplug_region_are_released_too() {
        let ram = GuestRam::from_ranges(&[(0, 4 << 20)]).with_hotplug_at(1 << 30, 128 << 20);
        let (first, block) = (GuestAddress(1 << 30), 2 * MIB);
        ram.hotplug().unwrap().plugged().unwrap().set(&(0..block), true);
        ram.write_obj(0x55_u8, first).unwrap();
        assert_eq!(release(&ram, &[first.0..first.0 + block]), block);
        assert_eq!(ram.read_obj::<u8>(first).unwrap(), 0);
    }
}
