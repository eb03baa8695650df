//! The PVH boot protocol's data: start info and memory map (Xen's `start_info.h`).

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
use vm_memory::GuestAddress;

use super::{Error, memory_map};
use crate::memory::{GuestRam, layout};

const MAGIC: u32 = 0x336E_C578;

pub(super) fn write_start_info(memory: &GuestRam, rsdp: u64) -> Result<(), Error> {
    let map: Vec<_> = memory_map(memory)
        .into_iter()
        .map(|(range, kind)| hvm_memmap_table_entry {
            addr: range.start,
            size: range.end - range.start,
            type_: kind as u32,
            reserved: 0,
        })
        .collect();
    let info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: layout::PVH_MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(layout::PVH_START_INFO));
    params.set_sections(&map, GuestAddress(layout::PVH_MEMORY_MAP));
    PvhBootConfigurator::write_bootparams(&params, memory).map_err(|error| Error::Write(error.to_string()))
}
