//! Runs programs of the host, such as `ip` and `nft`.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Runs a program of the host (`ip`, `nft`, …) with `input` on its standard input, and waits.
///
/// # Errors
/// The program is missing or fails. If it fails, the error has its output.
pub(super) fn run(program: &str, arguments: &[&str], input: &str) -> anyhow::Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{program}`: is its Debian package installed?"))?;
    // The programs read all of their input before they print more than a pipe holds.
    child.stdin.take().context("no pipe")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{program} {}` failed ({}): {}", arguments.join(" "), output.status, said.trim().replace('\n', "; "));
    }
    Ok(())
}
