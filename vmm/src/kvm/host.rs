//! Checks whether this host can run guests.

use std::arch::x86_64::{__cpuid, __get_cpuid_max};

use kvm_ioctls::{Cap, Kvm};

use super::Error;

/// The required KVM capabilities, each with its name for the error.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::Irqchip, "the in-kernel interrupt controllers (KVM_CAP_IRQCHIP)"),
    (Cap::Irqfd, "irqfd (KVM_CAP_IRQFD)"),
    (Cap::Ioeventfd, "ioeventfd (KVM_CAP_IOEVENTFD)"),
    (Cap::IoeventfdNoLength, "ioeventfd of any length (KVM_CAP_IOEVENTFD_ANY_LENGTH)"),
    (Cap::ImmediateExit, "immediate exit (KVM_CAP_IMMEDIATE_EXIT)"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::TscDeadlineTimer, "the TSC deadline timer (KVM_CAP_TSC_DEADLINE_TIMER)"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
];

/// Opens `/dev/kvm` and checks that it can run Linux. The processor's features decide: on some hosts there is a
/// `/dev/kvm` that emulates only a few instructions.
pub(crate) fn open(vcpus: u8) -> Result<Kvm, Error> {
    let kvm = Kvm::new().map_err(|error| open_error(error.into()))?;
    if !has_virtualization() {
        return Err(Error::NoHardware);
    }
    if kvm.get_api_version() != kvm_bindings::KVM_API_VERSION as i32 {
        return Err(Error::Version(kvm.get_api_version()));
    }
    if let Some((_, name)) = REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        return Err(Error::Lacks(name));
    }
    if usize::from(vcpus) > kvm.get_max_vcpus() {
        return Err(Error::TooManyVcpus { wanted: vcpus, max: kvm.get_max_vcpus() });
    }
    Ok(kvm)
}

fn open_error(source: std::io::Error) -> Error {
    let hint = match source.raw_os_error() {
        Some(libc::ENOENT) if has_virtualization() => {
            "load the module kvm_intel or kvm_amd, and enable virtualization in the firmware"
        }
        Some(libc::ENOENT) => {
            "this processor offers no hardware virtualization: run on bare metal, or in the emulated host"
        }
        Some(libc::EACCES | libc::EPERM) => "the user running garret-vmm needs read and write access to it",
        _ => "is KVM in use by another hypervisor, or switched off in the firmware?",
    };
    Error::Open { source, hint }
}

/// Whether the processor has VT-x (leaf 1, ECX bit 5) or AMD-V (leaf 0x8000_0001, ECX bit 2). Executes CPUID, because
/// the jail has no `/proc/cpuinfo`.
fn has_virtualization() -> bool {
    let vmx = __cpuid(1).ecx & (1 << 5) != 0;
    let (max_extended, _) = __get_cpuid_max(0x8000_0000);
    let svm = max_extended >= 0x8000_0001 && __cpuid(0x8000_0001).ecx & (1 << 2) != 0;
    vmx || svm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_and_the_kernel_agree_about_virtualization() {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap();
        let shown = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
        assert_eq!(has_virtualization(), shown);
    }

    #[test]
    fn every_error_is_one_line_that_says_what_to_do() {
        for code in [libc::ENOENT, libc::EACCES, libc::ENODEV] {
            let line = open_error(std::io::Error::from_raw_os_error(code)).to_string();
            assert!(line.starts_with("/dev/kvm: ") && line.contains("; ") && !line.contains('\n'), "{line}");
        }
    }
}
