//! The Linux boot protocol's "zero page", for a bzImage entered in 64-bit mode (Documentation/arch/x86/boot.rst).

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::GuestAddress;

use super::{Error, Initrd, memory_map};
use crate::memory::{GuestRam, layout};

/// The offset of the 64-bit entry from a bzImage's load address.
pub(super) const ENTRY_64: u64 = 0x200;
/// `type_of_loader`: a boot loader without an assigned number.
const LOADER: u8 = 0xFF;

pub(super) fn write_zero_page(
    memory: &GuestRam,
    header: setup_header,
    cmdline_len: usize,
    initrd: Option<Initrd>,
    rsdp: u64,
) -> Result<(), Error> {
    let mut page = boot_params { hdr: header, acpi_rsdp_addr: rsdp, ..Default::default() };
    page.hdr.type_of_loader = LOADER;
    page.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    page.hdr.cmdline_size = cmdline_len as u32;
    if let Some(initrd) = initrd {
        // The initrd is below 3 GiB, so 32 bits are enough.
        page.hdr.ramdisk_image = initrd.at as u32;
        page.hdr.ramdisk_size = initrd.len as u32;
    }
    let map = memory_map(memory);
    page.e820_entries = map.len() as u8;
    for (entry, (range, kind)) in page.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry { addr: range.start, size: range.end - range.start, type_: kind as u32 };
    }
    let params = BootParams::new(&page, GuestAddress(layout::ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&params, memory).map_err(|error| Error::Write(error.to_string()))
}
