//! The registers of the first processor at the kernel's entry, and the initial state of every processor.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::{Error, failed};
use crate::memory::{GuestRam, layout};

/// The protocol by which the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// 32-bit protected mode without paging; EBX holds the start info's address.
    Pvh {
        /// The address of the first instruction.
        at: u64,
    },
    /// The 64-bit Linux boot protocol; RSI holds the zero page's address.
    Linux64 {
        /// The address of the first instruction.
        at: u64,
    },
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS: the bit that is always set.
const RFLAGS: u64 = 1 << 1;

const MSR_IA32_MISC_ENABLE: u32 = 0x1A0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2FF;
/// MTRRs on, write-back by default.
const MTRR_WRITE_BACK: u64 = (1 << 11) | 6;

/// Offsets in the local APIC's register page, and delivery modes of its local interrupt pins.
const APIC_LVT0: usize = 0x350;
const APIC_LVT1: usize = 0x360;
const MODE_EXT_INT: u32 = 0x700;
const MODE_NMI: u32 = 0x400;

/// Sets the initial state of a processor, whether or not it waits for its start-up signal.
pub(crate) fn set_common(vcpu: &VcpuFd, cpuid: &CpuId) -> Result<(), Error> {
    debug_assert!(cpuid.as_slice().len() <= KVM_MAX_CPUID_ENTRIES);
    vcpu.set_cpuid2(cpuid).map_err(failed("set a vCPU's features"))?;
    // The state that firmware would leave: x87 and SSE exceptions are masked.
    let fpu = kvm_fpu { fcw: 0x37F, mxcsr: 0x1F80, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(failed("set a vCPU's floating-point unit"))?;
    set_msrs(vcpu)?;
    set_local_interrupts(vcpu)
}

/// Sets the first processor's registers for the kernel's entry.
pub(crate) fn set_entry(vcpu: &VcpuFd, memory: &GuestRam, entry: Entry) -> Result<(), Error> {
    let mut sregs = vcpu.get_sregs().map_err(failed("read a vCPU's registers"))?;
    let regs = match entry {
        Entry::Pvh { at } => {
            protected_mode(&mut sregs);
            kvm_regs { rip: at, rbx: layout::PVH_START_INFO, rflags: RFLAGS, ..Default::default() }
        }
        Entry::Linux64 { at } => {
            long_mode(&mut sregs, memory).map_err(|error| Error::Call {
                what: "write the first page tables",
                source: std::io::Error::other(error),
            })?;
            kvm_regs { rip: at, rsi: layout::ZERO_PAGE, rflags: RFLAGS, ..Default::default() }
        }
    };
    vcpu.set_sregs(&sregs).map_err(failed("set a vCPU's segments"))?;
    vcpu.set_regs(&regs).map_err(failed("set a vCPU's registers"))
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), Error> {
    let entries = [(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING), (MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK)]
        .map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    let refused = |source| Error::Call { what: "set a vCPU's model-specific registers", source };
    let msrs = Msrs::from_entries(&entries).map_err(|_| refused(std::io::ErrorKind::InvalidInput.into()))?;
    match vcpu.set_msrs(&msrs) {
        Ok(set) if set == entries.len() => Ok(()),
        Ok(set) => Err(refused(std::io::Error::other(format!("register {:#x}", entries[set].index)))),
        Err(error) => Err(refused(error.into())),
    }
}

/// Pin 0 receives the legacy controller's interrupts, pin 1 the NMI.
fn set_local_interrupts(vcpu: &VcpuFd) -> Result<(), Error> {
    let mut apic = vcpu.get_lapic().map_err(failed("read a vCPU's local APIC"))?;
    for (offset, mode) in [(APIC_LVT0, MODE_EXT_INT), (APIC_LVT1, MODE_NMI)] {
        for (register, byte) in apic.regs[offset..offset + 4].iter_mut().zip(mode.to_le_bytes()) {
            *register = byte as _;
        }
    }
    vcpu.set_lapic(&apic).map_err(failed("set a vCPU's local APIC"))
}

/// PVH: flat 4 GiB segments, protection on, paging off.
fn protected_mode(sregs: &mut kvm_sregs) {
    set_segments(sregs, segment(0x08, CODE, true, false), segment(0x10, DATA, true, false));
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
}

/// 64-bit: flat segments, the first 4 GiB mapped to themselves.
fn long_mode(sregs: &mut kvm_sregs, memory: &GuestRam) -> Result<(), vm_memory::GuestMemoryError> {
    // __BOOT_CS and __BOOT_DS of the Linux boot protocol.
    set_segments(sregs, segment(0x10, CODE, false, true), segment(0x18, DATA, true, false));
    write_gdt(memory)?;
    (sregs.gdt.base, sregs.gdt.limit) = (layout::GDT, 4 * 8 - 1);
    write_page_tables(memory)?;
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.efer |= EFER_LME | EFER_LMA;
    Ok(())
}

/// Descriptor types: code, execute and read, accessed; data, read and write, accessed.
const CODE: u8 = 0xB;
const DATA: u8 = 0x3;

fn segment(selector: u16, type_: u8, default_32: bool, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xFFFF_FFFF,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: default_32.into(),
        s: 1,
        l: long.into(),
        g: 1,
        ..Default::default()
    }
}

fn set_segments(sregs: &mut kvm_sregs, code: kvm_segment, data: kvm_segment) {
    sregs.cs = code;
    for register in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *register = data;
    }
    // KVM needs a valid, busy task register, although no code here switches tasks.
    sregs.tr = kvm_segment { selector: 0, type_: 0xB, present: 1, limit: 0x67, ..Default::default() };
}

fn write_gdt(memory: &GuestRam) -> Result<(), vm_memory::GuestMemoryError> {
    // null, null, 64-bit code, data: the segments of `long_mode` in the processor's format.
    for (index, descriptor) in [0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFFu64].into_iter().enumerate() {
        memory.write_obj(descriptor, GuestAddress(layout::GDT + 8 * index as u64))?;
    }
    Ok(())
}

fn write_page_tables(memory: &GuestRam) -> Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    const PAGE: u64 = 4096;
    let (level4, level3, level2) = (layout::PAGE_TABLES, layout::PAGE_TABLES + PAGE, layout::PAGE_TABLES + 2 * PAGE);
    memory.write_obj(level3 | PRESENT_WRITABLE, GuestAddress(level4))?;
    for gib in 0..4 {
        memory.write_obj((level2 + gib * PAGE) | PRESENT_WRITABLE, GuestAddress(level3 + 8 * gib))?;
    }
    for mib2 in 0..4 * 512u64 {
        memory.write_obj((mib2 << 21) | PRESENT_WRITABLE | LARGE, GuestAddress(level2 + 8 * mib2))?;
    }
    Ok(())
}
