//! The driver of garret's tests, which `make host` and `make test` call: runs the emulated host, and the groups of
//! tests within their budgets.

mod groups;
mod host;
mod load;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(about, version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot the emulated host: a Debian under QEMU whose /dev/kvm is a complete KVM, with garret installed and its
    /// runner started
    Host(host::Options),
    /// Take memory, keep it and check it byte by byte, for the memory tests in their guests
    Load(load::Options),
    /// Kill daemon, VMM and agent during operations, repeatedly
    Campaign(groups::campaign::Options),
    /// Run the groups of tests, each within its budget of time
    Test(groups::Options),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let (outcome, failed) = match Arguments::parse().command {
        Command::Campaign(options) => (groups::campaign::run(&options).await, ExitCode::FAILURE),
        Command::Host(options) => (host::run(&options).await, ExitCode::from(host::STATUS_HOST_FAILED)),
        Command::Load(options) => (load::run(&options), ExitCode::FAILURE),
        Command::Test(options) => (groups::run(&options).await, ExitCode::FAILURE),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("garret-integration: {error:#}");
        failed
    })
}
