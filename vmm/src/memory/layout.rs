//! The layout of the guest's physical address space.
//!
//! ```text
//! 0            low memory: start info, command line, ACPI tables, then the kernel at its own address
//! 3 GiB        PCI window, PCI configuration space, then the APICs and KVM's own pages
//! 4 GiB        the rest of RAM
//! …            the hotplug region, at the next whole GiB: not in the map the guest boots with
//! …            /dev/pmem0, at the next whole GiB
//! ```

use std::ops::Range;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// RAM below 4 GiB ends here at the latest.
pub(crate) const LOW_RAM_END: u64 = 3 * GIB;
/// The rest of RAM begins here.
pub(crate) const HIGH_RAM_START: u64 = 4 * GIB;

/// PVH start info and its memory map, a page each.
pub(crate) const PVH_START_INFO: u64 = 0x6000;
/// The memory map of the PVH start info.
pub(crate) const PVH_MEMORY_MAP: u64 = 0x7000;
/// The kernel's command line.
pub(crate) const CMDLINE: u64 = 0x2_0000;
/// Conventional memory ends here. The area from here to 1 MiB belongs to firmware on a PC.
pub(crate) const EBDA: u64 = 0x9_FC00;
/// The ACPI tables' place.
pub(crate) const ACPI: Range<u64> = 0xE_0000..0x10_0000;
/// The kernel lies here or above.
pub(crate) const HIGH_KERNEL: u64 = MIB;

/// Memory BARs, and the host bridge's window in the DSDT.
pub(crate) const PCI_WINDOW: Range<u64> = 0xC000_0000..0xE000_0000;
/// PCI configuration space of bus 0: 4 KiB for each of 32 devices' 8 functions (PCI Express Base 4.0, §7.2.2).
pub(crate) const PCI_CONFIG: Range<u64> = 0xE000_0000..0xE010_0000;
/// The I/O APIC's registers.
pub(crate) const IO_APIC: u64 = 0xFEC0_0000;
/// The local APICs' registers.
pub(crate) const LOCAL_APIC: u64 = 0xFEE0_0000;
/// One page which KVM needs on Intel processors without unrestricted guests.
pub(crate) const KVM_IDENTITY_MAP: u64 = 0xFFFB_C000;
/// Three pages which KVM needs on the same processors.
pub(crate) const KVM_TSS: u64 = 0xFFFB_D000;

/// The ranges of RAM for a machine of `bytes`.
pub(crate) fn ram_ranges(bytes: u64) -> Vec<Range<u64>> {
    if bytes <= LOW_RAM_END {
        return std::iter::once(0..bytes).collect();
    }
    vec![0..LOW_RAM_END, HIGH_RAM_START..HIGH_RAM_START + (bytes - LOW_RAM_END)]
}

/// The address of the hotplug region: above all RAM, at a whole GiB (the guest kernel plugs 128 MiB at once, or more).
pub(crate) fn hotplug_base(ram_bytes: u64) -> u64 {
    let top = ram_ranges(ram_bytes).last().map_or(0, |range| range.end);
    top.max(HIGH_RAM_START).next_multiple_of(GIB)
}

/// The address of persistent memory: above the hotplug region, at a whole GiB (the guest kernel needs sections of 128
/// MiB).
pub(crate) fn pmem_base(ram_bytes: u64, hotplug_bytes: u64) -> u64 {
    (hotplug_base(ram_bytes) + hotplug_bytes).next_multiple_of(GIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_hole_below_4_gib() {
        for (bytes, low_end, high_end) in [
            (64 * MIB, 64 * MIB, None),
            (3 * GIB, 3 * GIB, None),
            (3 * GIB + MIB, 3 * GIB, Some(4 * GIB + MIB)),
            (8 * GIB, 3 * GIB, Some(9 * GIB)),
        ] {
            let ranges = ram_ranges(bytes);
            assert_eq!(ranges[0], 0..low_end, "{bytes:#x}");
            assert_eq!(ranges.get(1).cloned(), high_end.map(|end| 4 * GIB..end), "{bytes:#x}");
            assert_eq!(ranges.iter().map(|range| range.end - range.start).sum::<u64>(), bytes);
        }
    }

    #[test]
    fn the_hotplug_region_lies_above_ram_and_pmem_above_both() {
        for (ram, hotplug, hotplug_at, pmem_at) in [
            (64 * MIB, 0, 4 * GIB, 4 * GIB),
            (64 * MIB, 128 * MIB, 4 * GIB, 5 * GIB),
            (3 * GIB + MIB, GIB, 5 * GIB, 6 * GIB),
            (8 * GIB, 1 << 40, 9 * GIB, 9 * GIB + (1 << 40)),
        ] {
            assert_eq!((hotplug_base(ram), pmem_base(ram, hotplug)), (hotplug_at, pmem_at), "{ram:#x} {hotplug:#x}");
        }
    }

    #[test]
    fn nothing_overlaps_below_1_mib() {
        let in_order = [
            PVH_START_INFO..PVH_START_INFO + 4096,
            PVH_MEMORY_MAP..PVH_MEMORY_MAP + 4096,
            CMDLINE..CMDLINE + 4096,
            EBDA..ACPI.start,
            ACPI,
            HIGH_KERNEL..LOW_RAM_END,
        ];
        for pair in in_order.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{pair:x?}");
        }
    }
}
