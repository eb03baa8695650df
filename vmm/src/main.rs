//! `garret-vmm`: runs one machine, and ends with it.

use std::process::ExitCode;

fn main() -> ExitCode {
    garret_vmm::main()
}
