//! One process is one machine: this library builds it, runs it and serves its API.
//!
//! `machine` assembles the machine, in the order of the boot; `driver` runs it; `control` has the events and commands that
//! all other threads send to it.

mod acpi;
mod api_server;
mod boot;
mod bus;
mod cli;
mod config;
mod confine;
mod console_log;
mod control;
mod devices;
mod driver;
mod inherited;
mod kvm;
mod last_words;
mod machine;
mod memory;
mod pci;
mod platform;
mod rate_limit;
mod seccomp;
mod signals;
mod thread;
mod timer;
mod vcpu;
mod virtio;

pub use cli::main;
