//! Loads the kernel, the command line and the memory map into guest memory.

pub(crate) mod cmdline;
mod elf;
mod pvh;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use garret_api::vmm::KernelConfig;
use linux_loader::loader::{self, Elf, KernelLoader, KernelLoaderResult, PvhBootCapability};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryRegion};

use crate::memory::{GuestRam, GuestRegion, layout};

/// Why the machine cannot boot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("kernel {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    #[error("kernel {path}: not an ELF file: name a vmlinux for x86-64", path = .0.display())]
    NotAKernel(PathBuf),
    /// The file is an ELF file without a PVH entry.
    #[error("kernel {path}: an ELF file without a PVH entry: build the kernel with CONFIG_PVH=y", path = .0.display())]
    NoEntry(PathBuf),
    #[error("kernel {path}: truncated or damaged ({reason}): build or copy it again", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The defect.
        reason: String,
    },
    #[error("kernel {path}: does not fit into the machine's memory: give it more than {mib} MiB", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The size of the machine's low memory.
        mib: u64,
    },
    /// The command line is too long or contains an invalid byte.
    #[error("kernel command line: {0}")]
    Cmdline(#[from] cmdline::Error),
    /// Boot data does not fit into low memory, which config validation excludes.
    #[error("cannot write boot data: {0}")]
    Write(String),
}

/// Loads all boot data. Returns the address of the kernel's PVH entry.
pub(crate) fn load(memory: &GuestRam, config: &KernelConfig, cmdline: &str, rsdp: u64) -> Result<u64, Error> {
    let kernel = load_kernel(memory, &config.image)?;
    let PvhBootCapability::PvhEntryPresent(entry) = kernel.pvh_boot_cap else {
        return Err(Error::NoEntry(config.image.clone()));
    };
    let line = [cmdline.as_bytes(), b"\0"].concat();
    memory.write_slice(&line, GuestAddress(layout::CMDLINE)).map_err(|error| Error::Write(error.to_string()))?;
    pvh::write_start_info(memory, rsdp)?;
    Ok(entry.0)
}

/// The kinds of memory in the guest's memory map, with their E820 numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ram = 1,
    Reserved = 2,
}

/// The guest's memory map. All RAM is usable, except the area below 1 MiB that firmware owns on a PC (the ACPI tables
/// are there). Persistent memory and the hotplug region are not in the map: their devices report them to the guest.
fn memory_map(memory: &GuestRam) -> Vec<(Range<u64>, Kind)> {
    let low = low_end(memory);
    let mut map = vec![
        (0..layout::EBDA, Kind::Ram),
        (layout::EBDA..layout::HIGH_KERNEL, Kind::Reserved),
        (layout::HIGH_KERNEL..low, Kind::Ram),
        // Until Linux has read the DSDT, it uses the MCFG table only if this map reserves the same range.
        (layout::PCI_CONFIG, Kind::Reserved),
    ];
    let is_ram = |region: &&GuestRegion| region.plugged().is_none() && region.file_offset().is_none();
    let high = memory.iter().filter(is_ram).find(|region| region.start_addr().0 == layout::HIGH_RAM_START);
    map.extend(high.map(|region| (layout::HIGH_RAM_START..layout::HIGH_RAM_START + region.len(), Kind::Ram)));
    map
}

fn load_kernel(memory: &GuestRam, path: &Path) -> Result<KernelLoaderResult, Error> {
    let mut file = open(path)?;
    let mut magic = Vec::new();
    let unreadable = |source| Error::Read { path: path.to_owned(), source };
    (&file).take(4).read_to_end(&mut magic).map_err(unreadable)?;
    if magic != *b"\x7fELF" {
        return Err(Error::NotAKernel(path.to_owned()));
    }
    let defect = elf::check(&file, |start, end| in_ram(memory, start, end)).map_err(unreadable)?;
    if let Some(defect) = defect {
        return Err(match defect {
            elf::Defect::Damaged(reason) => Error::Damaged { path: path.to_owned(), reason },
            elf::Defect::TooLarge => Error::TooLarge { path: path.to_owned(), mib: low_end(memory) >> 20 },
        });
    }
    let lowest = Some(GuestAddress(layout::HIGH_KERNEL));
    let loaded = Elf::load(memory, None, &mut file, lowest);
    loaded.map_err(|error: loader::Error| Error::Damaged { path: path.to_owned(), reason: error.to_string() })
}

fn in_ram(memory: &GuestRam, start: u64, end: u64) -> bool {
    end >= start && memory.check_range(GuestAddress(start), (end - start) as usize)
}

/// One past the last byte of low RAM.
fn low_end(memory: &GuestRam) -> u64 {
    memory.iter().next().map_or(0, |region| region.len())
}

fn open(path: &Path) -> Result<File, Error> {
    let unreadable = |source| Error::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(unreadable(std::io::Error::other("not a regular file")));
    }
    Ok(file)
}
