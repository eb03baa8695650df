use super::*;
use std::io::Write;

use linux_loader::elf::{Elf64_Ehdr, Elf64_Nhdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
use vm_memory::ByteValued;

const MIB: u64 = 1 << 20;

fn memory() -> GuestRam {
    crate::memory::ram(64 * MIB).unwrap()
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A kernel of one loadable segment of 4 KiB at `address`, with a PVH note if wanted.
fn elf(address: u64, note: bool) -> Vec<u8> {
    let (header_len, segment_len) = (size_of::<Elf64_Ehdr>() as u64, size_of::<Elf64_Phdr>() as u64);
    let mut header = Elf64_Ehdr {
        e_entry: address,
        e_phoff: header_len,
        e_phentsize: segment_len as u16,
        e_phnum: 1 + u16::from(note),
        ..Default::default()
    };
    header.e_ident[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let note_bytes = [
        Elf64_Nhdr { n_namesz: 4, n_descsz: 4, n_type: 18 }.as_slice(),
        b"Xen\0",
        &(address as u32 + 0x40).to_le_bytes(),
    ]
    .concat();
    let notes_at = header_len + 2 * segment_len;
    let mut bytes = header.as_slice().to_vec();
    let load = Elf64_Phdr {
        p_type: PT_LOAD,
        p_offset: 0x1000,
        p_paddr: address,
        p_filesz: 0x1000,
        p_memsz: 0x3000,
        ..Default::default()
    };
    bytes.extend_from_slice(load.as_slice());
    if note {
        let segment =
            Elf64_Phdr { p_type: PT_NOTE, p_offset: notes_at, p_filesz: note_bytes.len() as u64, ..Default::default() };
        bytes.extend_from_slice(segment.as_slice());
    }
    bytes.resize(notes_at as usize, 0);
    bytes.extend_from_slice(&note_bytes);
    bytes.resize(0x1000, 0);
    bytes.extend_from_slice(&[0xF4; 0x1000]);
    bytes
}

fn load_file(file: &tempfile::NamedTempFile) -> Result<u64, Error> {
    let config = KernelConfig { image: file.path().to_owned(), cmdline: String::new() };
    load(&memory(), &config, "console=ttyS0", 0xE_0000)
}

#[test]
fn a_pvh_kernel_is_entered_at_its_note() {
    let kernel = file(&elf(16 * MIB, true));
    assert_eq!(load_file(&kernel).unwrap(), 16 * MIB + 0x40);
}

#[test]
fn every_bad_kernel_has_its_own_clear_line() {
    let whole = elf(16 * MIB, true);
    for (name, bytes, expected) in [
        ("empty", vec![], "not an ELF file"),
        ("text", b"#!/bin/sh\n".to_vec(), "not an ELF file"),
        ("cut in the header", whole[..40].to_vec(), "ends inside the ELF header"),
        ("cut in the program headers", whole[..80].to_vec(), "ends inside the program headers"),
        ("cut in the code", whole[..0x1800].to_vec(), "it has 6144 bytes and needs 8192"),
        ("no PVH note", elf(16 * MIB, false), "CONFIG_PVH=y"),
        ("beyond memory", elf(64 * MIB, true), "give it more than 64 MiB"),
    ] {
        let kernel = file(&bytes);
        let line = load_file(&kernel).unwrap_err().to_string();
        assert!(line.contains(expected), "{name}: {line}");
        assert!(line.contains(kernel.path().to_str().unwrap()) && !line.contains('\n'), "{name}: {line}");
    }
}

#[test]
fn a_missing_kernel_is_named() {
    let config = KernelConfig { image: "/no/such/vmlinux".into(), cmdline: String::new() };
    let line = load(&memory(), &config, "", 0).unwrap_err().to_string();
    assert_eq!(line, "kernel /no/such/vmlinux: No such file or directory (os error 2)");
    let config = KernelConfig { image: "/".into(), ..config };
    assert_eq!(load(&memory(), &config, "", 0).unwrap_err().to_string(), "kernel /: not a regular file");
}

#[test]
fn the_memory_map_covers_ram_and_nothing_else() {
    let mut map = memory_map(&memory());
    let device = map.pop_if(|(range, _)| *range == layout::PCI_CONFIG);
    assert_eq!(device.unwrap().1, Kind::Reserved, "PCI configuration space");
    assert_eq!(map.first().unwrap().0.start, 0);
    assert_eq!(map.last().unwrap().0.end, 64 * MIB);
    assert!(map.windows(2).all(|pair| pair[0].0.end == pair[1].0.start));
    let large = memory_map(&crate::memory::ram(4096 * MIB).unwrap());
    assert_eq!(large.last().unwrap(), &(layout::HIGH_RAM_START..layout::HIGH_RAM_START + 1024 * MIB, Kind::Ram));
    let full = crate::memory::ram(layout::LOW_RAM_END).unwrap();
    let hotplug = crate::memory::with_hotplug(&full, layout::HIGH_RAM_START, 128 * MIB).unwrap();
    assert_eq!(memory_map(&hotplug), memory_map(&full), "the hotplug region begins where high RAM would");
}
