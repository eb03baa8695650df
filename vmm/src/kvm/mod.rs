//! The kernel's side of the machine: virtual machine, memory slots, interrupts, processors.

pub mod cpuid;
mod host;
pub mod registers;
mod vm;

pub use host::open;
pub use vm::{Msi, Vm};

/// KVM is not usable, or refused something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The processor cannot run guests.
    #[error(
        "this processor offers no hardware virtualization (neither vmx nor svm): run on bare metal, or in the emulated host"
    )]
    NoHardware,
    /// `/dev/kvm` could not be opened.
    #[error("/dev/kvm: {source}; {hint}")]
    Open {
        /// The kernel's answer.
        source: std::io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// The kernel's KVM is another one than ours.
    #[error("/dev/kvm speaks version {0} of the interface, garret needs {expected}", expected = kvm_bindings::KVM_API_VERSION)]
    Version(i32),
    /// The kernel's KVM lacks something.
    #[error("/dev/kvm lacks {0}: use a newer kernel")]
    Lacks(&'static str),
    /// There are more vCPUs than this host's KVM can give.
    #[error("this host's KVM gives at most {max} vCPUs, the machine wants {wanted}")]
    TooManyVcpus {
        /// What the machine wants.
        wanted: u8,
        /// What KVM gives.
        max: usize,
    },
    /// All interrupt numbers are in use.
    #[error("the machine has more interrupts than KVM has numbers ({0})")]
    NoGsi(u32),
    /// The hotplug region has no such granule.
    #[error("there is no granule {0} of pluggable memory")]
    NoGranule(usize),
    /// One call failed.
    #[error("KVM: cannot {what}: {source}")]
    Call {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// For `map_err`: names what was tried.
fn failed(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |source| Error::Call { what, source: source.into() }
}
