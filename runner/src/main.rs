//! `garret`: the host daemon and the command.

use std::process::ExitCode;

fn main() -> ExitCode {
    garret::main()
}
