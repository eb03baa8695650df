//! One process is one machine: this library builds it, runs it and answers for it.
//!
//! A machine is assembled in [`machine`], which reads top to bottom as the boot does; [`control`] holds its state.

pub mod boot;
pub mod bus;
pub mod console_log;
pub mod kvm;
pub mod memory;
pub mod seccomp;
pub mod thread;
pub mod virtio;
