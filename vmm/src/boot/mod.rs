//! Loads the kernel, the initrd, the command line and the memory map into guest memory.

pub(crate) mod cmdline;
mod elf;
mod linux;
mod pvh;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use garret_api::vmm::KernelConfig;
use linux_loader::loader::{self, BzImage, Elf, KernelLoader, KernelLoaderResult, PvhBootCapability};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryRegion};

use crate::kvm::registers::Entry;
use crate::memory::{GuestRam, GuestRegion, layout};

/// Why the machine cannot boot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{what} {path}: {source}", path = path.display())]
    Read {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    #[error("kernel {path}: neither an ELF file nor a bzImage: name a vmlinux or a bzImage for x86-64", path = .0.display())]
    NotAKernel(PathBuf),
    /// The file is an ELF file without a PVH entry.
    #[error(
        "kernel {path}: an ELF file without a PVH entry: build the kernel with CONFIG_PVH=y, or name its bzImage",
        path = .0.display()
    )]
    NoEntry(PathBuf),
    #[error("kernel {path}: truncated or damaged ({reason}): build or copy it again", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The defect.
        reason: String,
    },
    #[error("{what} {path}: does not fit into the machine's memory: give it more than {mib} MiB", path = path.display())]
    TooLarge {
        /// "kernel" or "initrd".
        what: &'static str,
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

/// Loads all boot data. Returns the entry point of the first processor.
pub(crate) fn load(memory: &GuestRam, config: &KernelConfig, cmdline: &str, rsdp: u64) -> Result<Entry, Error> {
    let kernel = load_kernel(memory, &config.image)?;
    let initrd = config.initrd.as_deref().map(|path| load_initrd(memory, path, kernel.kernel_end)).transpose()?;
    let line = [cmdline.as_bytes(), b"\0"].concat();
    memory.write_slice(&line, GuestAddress(layout::CMDLINE)).map_err(|error| Error::Write(error.to_string()))?;
    match kernel.setup_header {
        Some(header) => linux::write_zero_page(memory, header, line.len() - 1, initrd, rsdp)
            .map(|()| Entry::Linux64 { at: kernel.kernel_load.0 + linux::ENTRY_64 }),
        None => {
            let PvhBootCapability::PvhEntryPresent(entry) = kernel.pvh_boot_cap else {
                return Err(Error::NoEntry(config.image.clone()));
            };
            pvh::write_start_info(memory, initrd, rsdp).map(|()| Entry::Pvh { at: entry.0 })
        }
    }
}

/// The location of the initrd in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Initrd {
    at: u64,
    len: u64,
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

/// The format of a kernel file.
#[derive(Debug, PartialEq, Eq)]
enum Format {
    Elf,
    BzImage,
}

/// Detects the format. `head` holds the first 0x206 bytes of the file, or all of a shorter file.
fn format(head: &[u8]) -> Option<Format> {
    if head.starts_with(b"\x7fELF") {
        return Some(Format::Elf);
    }
    (head.get(0x202..0x206) == Some(b"HdrS")).then_some(Format::BzImage)
}

fn load_kernel(memory: &GuestRam, path: &Path) -> Result<KernelLoaderResult, Error> {
    let mut file = open("kernel", path)?;
    let mut head = Vec::new();
    let unreadable = |source| Error::Read { what: "kernel", path: path.to_owned(), source };
    (&file).take(0x206).read_to_end(&mut head).map_err(unreadable)?;
    let himem = Some(GuestAddress(layout::HIGH_KERNEL));
    let loaded = match format(&head).ok_or_else(|| Error::NotAKernel(path.to_owned()))? {
        Format::Elf => {
            let defect = elf::check(&file, |start, end| in_ram(memory, start, end)).map_err(unreadable)?;
            if let Some(defect) = defect {
                return Err(match defect {
                    elf::Defect::Damaged(reason) => Error::Damaged { path: path.to_owned(), reason },
                    elf::Defect::TooLarge => too_large(memory, "kernel", path),
                });
            }
            Elf::load(memory, None, &mut file, himem)
        }
        Format::BzImage => BzImage::load(memory, None, &mut file, himem),
    };
    loaded.map_err(|error: loader::Error| Error::Damaged { path: path.to_owned(), reason: error.to_string() })
}

fn in_ram(memory: &GuestRam, start: u64, end: u64) -> bool {
    end >= start && memory.check_range(GuestAddress(start), (end - start) as usize)
}

fn too_large(memory: &GuestRam, what: &'static str, path: &Path) -> Error {
    Error::TooLarge { what, path: path.to_owned(), mib: low_end(memory) >> 20 }
}

/// One past the last byte of low RAM.
fn low_end(memory: &GuestRam) -> u64 {
    memory.iter().next().map_or(0, |region| region.len())
}

/// Loads the initrd at the end of low RAM, so that the kernel can grow into the memory below it.
fn load_initrd(memory: &GuestRam, path: &Path, kernel_end: u64) -> Result<Initrd, Error> {
    let mut file = open("initrd", path)?;
    let unreadable = |source| Error::Read { what: "initrd", path: path.to_owned(), source };
    let len = file.seek(SeekFrom::End(0)).map_err(unreadable)?;
    file.rewind().map_err(unreadable)?;
    // A bzImage unpacks itself over the memory behind it. No kernel needs more than 64 MiB for that.
    const UNPACKING: u64 = 64 << 20;
    let at = low_end(memory).checked_sub(len).map(|at| at & !0xFFF);
    let at = at.filter(|at| *at >= kernel_end.saturating_add(UNPACKING).min(low_end(memory) / 2).max(kernel_end));
    let at = at.ok_or_else(|| too_large(memory, "initrd", path))?;
    memory
        .read_exact_volatile_from(GuestAddress(at), &mut file, len as usize)
        .map_err(|error| unreadable(std::io::Error::other(error)))?;
    Ok(Initrd { at, len })
}

fn open(what: &'static str, path: &Path) -> Result<File, Error> {
    let unreadable = |source| Error::Read { what, path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(unreadable(std::io::Error::other("not a regular file")));
    }
    Ok(file)
}
