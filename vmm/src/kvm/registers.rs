//! The registers of the first processor at the kernel's entry, and the initial state of every processor.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use super::{Error, failed};
use crate::memory::layout;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
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

/// Sets the first processor's registers for the kernel's PVH entry: 32-bit protected mode without paging, with the
/// start info's address in EBX.
pub(crate) fn set_entry(vcpu: &VcpuFd, entry: u64) -> Result<(), Error> {
    let mut sregs = vcpu.get_sregs().map_err(failed("read a vCPU's registers"))?;
    protected_mode(&mut sregs);
    let regs = kvm_regs { rip: entry, rbx: layout::PVH_START_INFO, rflags: RFLAGS, ..Default::default() };
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

/// Flat 4 GiB segments, protection on, paging off.
fn protected_mode(sregs: &mut kvm_sregs) {
    set_segments(sregs, segment(0x08, CODE), segment(0x10, DATA));
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
}

/// Descriptor types: code, execute and read, accessed; data, read and write, accessed.
const CODE: u8 = 0xB;
const DATA: u8 = 0x3;

fn segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xFFFF_FFFF,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
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
