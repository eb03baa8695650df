//! The parts of the machine that KVM provides: the virtual machine, memory slots, interrupts and processors.

pub(crate) mod cpuid;
mod host;
pub(crate) mod registers;
mod vm;

pub(crate) use host::open;
pub(crate) use vm::{Msi, Vm};

/// KVM cannot be used, or it rejected a call.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The processor cannot run guests.
    #[error(
        "this processor offers no hardware virtualization (neither vmx nor svm): run on bare metal, or in the emulated host"
    )]
    NoHardware,
    /// `/dev/kvm` could not be opened.
    #[error("/dev/kvm: {source}; {hint}")]
    Open {
        /// The kernel's error.
        source: std::io::Error,
        /// Advice for the user.
        hint: &'static str,
    },
    #[error("/dev/kvm has version {0} of the interface; garret needs {expected}", expected = kvm_bindings::KVM_API_VERSION)]
    Version(i32),
    #[error("/dev/kvm lacks {0}: use a newer kernel")]
    Lacks(&'static str),
    #[error("this host's KVM supports at most {max} vCPUs; the machine wants {wanted}")]
    TooManyVcpus {
        /// The machine's number of vCPUs.
        wanted: u8,
        /// The largest number that KVM supports.
        max: usize,
    },
    #[error("the machine needs more interrupts than KVM supports ({0})")]
    NoGsi(u32),
    #[error("pluggable memory has no granule {0}")]
    NoGranule(usize),
    #[error("KVM: cannot {what}: {source}")]
    Call {
        /// The attempted action.
        what: &'static str,
        source: std::io::Error,
    },
}

/// For `map_err`: returns an error that names the attempted action.
fn failed(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |source| Error::Call { what, source: source.into() }
}
