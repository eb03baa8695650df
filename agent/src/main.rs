//! `garret-agent`: PID 1 of the guest, and the server it starts.

use std::process::ExitCode;

fn main() -> ExitCode {
    garret_agent::main()
}
