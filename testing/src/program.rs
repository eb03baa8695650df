//! Shell scripts that tests put in the place of other programs.

use std::path::Path;
use std::process::Command;

/// Makes an executable file with this text.
///
/// A child writes it. A test that starts a program at the same moment would inherit this process's open file, and a
/// file that is open for writing cannot be executed (execve(2), `ETXTBSY`).
///
/// # Panics
/// It cannot be made.
pub fn write(program: &Path, text: &str) {
    let write = ["-c", "printf %s \"$0\" > \"$1\" && chmod 755 \"$1\"", text];
    assert!(Command::new("sh").args(write).arg(program).status().expect("sh runs").success());
}
