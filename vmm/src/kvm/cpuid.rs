//! The CPUID table of the guest's processors: the features that KVM supports on this host, with this machine's topology
//! and without the features that a guest must not use.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

use super::{Error, failed};

/// Leaf 1, ECX.
const MONITOR: u32 = 1 << 3;
const VMX: u32 = 1 << 5;
const SMX: u32 = 1 << 6;
const PDCM: u32 = 1 << 15;
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: several logical processors in the package.
const HTT: u32 = 1 << 28;
/// Leaf 7, EBX.
const SGX: u32 = 1 << 2;
/// Leaf 7, ECX.
const SGX_LC: u32 = 1 << 30;
/// Leaf 0x8000_0001, ECX.
const SVM: u32 = 1 << 2;
const PERFORMANCE_COUNTERS: u32 = (1 << 23) | (1 << 24) | (1 << 28);

/// The CPUID table that KVM supports on this host.
pub(crate) fn supported(kvm: &Kvm) -> Result<CpuId, Error> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("ask for the processor's features"))
}

/// Adapts `supported` to processor `index` of `vcpus`. The processors are cores of one package, with one thread each.
pub(crate) fn for_vcpu(supported: &CpuId, index: u8, vcpus: u8) -> CpuId {
    let mut table = supported.clone();
    // Leaf 0x1F has the same contents as 0xB where both exist. One is enough, and it must not show the host's topology.
    table.retain(|entry| !matches!(entry.function, 0xB | 0x1F));
    let mut entries = table.as_slice().to_vec();
    for entry in &mut entries {
        adapt(entry, u32::from(index), u32::from(vcpus));
    }
    entries.extend(topology(u32::from(index), u32::from(vcpus)));
    CpuId::from_entries(&entries).unwrap_or(table)
}

fn adapt(entry: &mut kvm_cpuid_entry2, index: u32, vcpus: u32) {
    match entry.function {
        0x1 => {
            entry.ebx = (entry.ebx & 0xFFFF) | (vcpus << 16) | (index << 24);
            entry.ecx &= !(MONITOR | VMX | SMX | PDCM);
            entry.ecx |= HYPERVISOR | X2APIC | TSC_DEADLINE;
            entry.edx = if vcpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
        }
        // Deterministic caches: the first two levels belong to a core, the rest to the package.
        0x4 if entry.eax & 0x1F != 0 => {
            let level = (entry.eax >> 5) & 7;
            let sharing = if level > 2 { vcpus - 1 } else { 0 };
            entry.eax = (entry.eax & 0x3FFF) | (sharing << 14) | ((vcpus - 1) << 26);
        }
        0x5 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0), // MONITOR/MWAIT
        // No performance counters: they reveal activity of the host and of other guests. One leaf is Intel's, one is
        // AMD's.
        0xA | 0x8000_0022 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x7 if entry.index == 0 => {
            entry.ebx &= !SGX;
            entry.ecx &= !SGX_LC;
        }
        0x8000_0001 => entry.ecx &= !(SVM | PERFORMANCE_COUNTERS),
        // The number of cores minus one. The width of the APIC id's core part is 0: the guest derives it.
        0x8000_0008 => entry.ecx = vcpus - 1,
        0x8000_000A => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0), // AMD-V
        0x8000_001D if entry.eax & 0x1F != 0 => {
            let level = (entry.eax >> 5) & 7;
            let sharing = if level > 2 { vcpus - 1 } else { 0 };
            entry.eax = (entry.eax & 0x3FFF) | (sharing << 14);
        }
        // Extended APIC id; core id with one thread per core; one node.
        0x8000_001E => (entry.eax, entry.ebx, entry.ecx) = (index, index & 0xFF, 0),
        _ => {}
    }
}

/// Leaf 0xB: a thread level with one processor, and a core level with all processors.
fn topology(index: u32, vcpus: u32) -> [kvm_cpuid_entry2; 3] {
    const SIGNIFICANT_INDEX: u32 = kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    let core_bits = vcpus.next_power_of_two().trailing_zeros();
    [(0, 0, 1, 1), (1, core_bits, vcpus, 2), (2, 0, 0, 0)].map(|(level, shift, processors, kind)| kvm_cpuid_entry2 {
        function: 0xB,
        index: level,
        flags: SIGNIFICANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: level | (kind << 8),
        edx: index,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> CpuId {
        let leaf = |function, index, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        CpuId::from_entries(&[
            leaf(0x1, 0, 0, 0x4704_0800, VMX | MONITOR, HTT),
            leaf(0x4, 0, 0xFC00_0021 | (0x3F << 14), 0, 0, 0),
            leaf(0x4, 3, 0xFC00_0063 | (0xFFF << 14), 0, 0, 0),
            leaf(0x7, 0, 0, SGX | 1, SGX_LC, 0),
            leaf(0xA, 0, 7, 7, 7, 7),
            leaf(0xB, 0, 1, 2, 0x100, 47),
            leaf(0x1F, 0, 1, 2, 0x100, 47),
            leaf(0x8000_0001, 0, 0, 0, SVM, 0),
            leaf(0x8000_0008, 0, 0x3030, 0, 0x703F, 0),
            leaf(0x8000_001E, 0, 47, 0x12F, 3, 0),
            leaf(0x8000_0022, 0, 3, 6, 3, 0),
        ])
        .unwrap()
    }

    fn leaf(table: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *table.as_slice().iter().find(|entry| entry.function == function && entry.index == index).unwrap()
    }

    #[test]
    fn each_processor_knows_its_own_number_and_not_the_hosts() {
        for (index, vcpus) in [(0, 1), (0, 2), (5, 6), (31, 32)] {
            let guest = for_vcpu(&table(), index, vcpus);
            let (index, vcpus) = (u32::from(index), u32::from(vcpus));
            assert_eq!(leaf(&guest, 1, 0).ebx >> 24, index);
            assert_eq!((leaf(&guest, 1, 0).ebx >> 16) & 0xFF, vcpus);
            assert_eq!(leaf(&guest, 1, 0).edx & HTT != 0, vcpus > 1);
            assert_eq!(leaf(&guest, 0xB, 0).edx, index);
            assert_eq!(leaf(&guest, 0xB, 1).ebx, vcpus);
            assert!(1 << leaf(&guest, 0xB, 1).eax >= vcpus);
            assert_eq!(leaf(&guest, 0x8000_001E, 0).eax, index);
            assert_eq!(leaf(&guest, 0x4, 0).eax >> 14 & 0xFFF, 0, "a core's own cache");
            assert_eq!(leaf(&guest, 0x4, 3).eax >> 14 & 0xFFF, vcpus - 1, "the package's cache");
            assert_eq!(leaf(&guest, 0x8000_0008, 0).ecx, vcpus - 1);
            assert!(guest.as_slice().iter().all(|entry| entry.function != 0x1F));
            assert_eq!(guest.as_slice().iter().filter(|entry| entry.function == 0xB).count(), 3);
        }
    }

    #[test]
    fn a_guest_sees_a_hypervisor_and_no_nesting() {
        let guest = for_vcpu(&table(), 0, 1);
        let features = leaf(&guest, 1, 0).ecx;
        assert_eq!(features & (HYPERVISOR | TSC_DEADLINE | X2APIC), HYPERVISOR | TSC_DEADLINE | X2APIC);
        assert_eq!(features & (VMX | MONITOR), 0);
        assert_eq!(leaf(&guest, 0x8000_0001, 0).ecx & SVM, 0);
        assert_eq!(leaf(&guest, 7, 0).ebx, 1);
        for counters in [leaf(&guest, 0xA, 0), leaf(&guest, 0x8000_0022, 0)] {
            assert_eq!([counters.eax, counters.ebx, counters.ecx, counters.edx], [0; 4], "{:#x}", counters.function);
        }
    }
}
