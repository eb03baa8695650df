//! One process is one machine: this library builds it, runs it and serves its API.
//!
//! [`machine`] assembles the machine, in the order of the boot; [`control`] holds its state.

pub mod acpi;
pub mod api_server;
pub mod boot;
pub mod bus;
pub mod config;
pub mod confine;
pub mod console_log;
pub mod control;
pub mod devices;
pub mod inherited;
pub mod kvm;
pub mod last_words;
pub mod machine;
pub mod memory;
pub mod pci;
pub mod platform;
pub mod rate_limit;
pub mod seccomp;
pub mod thread;
pub mod timer;
pub mod vcpu;
pub mod virtio;
