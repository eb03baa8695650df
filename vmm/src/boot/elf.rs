//! Checks whether an ELF file is complete and fits into guest memory. The loader's errors do not distinguish a
//! truncated file from a machine that is too small.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_LOAD};
use vm_memory::ByteValued;

/// Why a file cannot be loaded.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Defect {
    Damaged(String),
    TooLarge,
}

/// Checks the file's length against its headers, and its segments against `in_ram(start, end)`.
pub(super) fn check(file: &File, in_ram: impl Fn(u64, u64) -> bool) -> io::Result<Option<Defect>> {
    let len = file.metadata()?.len();
    let mut header = Elf64_Ehdr::default();
    if file.read_exact_at(header.as_mut_slice(), 0).is_err() {
        return Ok(Some(Defect::Damaged("it ends inside the ELF header".to_owned())));
    }
    for index in 0..u64::from(header.e_phnum) {
        let mut segment = Elf64_Phdr::default();
        let at = header.e_phoff.saturating_add(index * size_of::<Elf64_Phdr>() as u64);
        if file.read_exact_at(segment.as_mut_slice(), at).is_err() {
            return Ok(Some(Defect::Damaged("it ends inside the program headers".to_owned())));
        }
        let needs = segment.p_offset.saturating_add(segment.p_filesz);
        if needs > len {
            return Ok(Some(Defect::Damaged(format!("it has {len} bytes and needs {needs}"))));
        }
        let end = segment.p_paddr.saturating_add(segment.p_memsz.max(segment.p_filesz));
        if segment.p_type == PT_LOAD && !in_ram(segment.p_paddr, end) {
            return Ok(Some(Defect::TooLarge));
        }
    }
    Ok(None)
}
