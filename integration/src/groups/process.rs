//! Runs a program of a group, and kills all of its processes when the group's time is over.

use super::progress;
use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process_group};
use std::io::IsTerminal;
use std::process::{ExitStatus, Stdio};
use tokio::process::{Child, Command};

/// Runs cargo. A unit test that hangs is killed, and the group fails.
pub(super) async fn cargo(arguments: &[&str]) -> anyhow::Result<bool> {
    let mut command = Command::new("cargo");
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    if std::io::stdout().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    let (mut child, group) = spawn(command)?;
    let status = progress::follow(&mut child).await?;
    Ok(group.passed(status))
}

/// Runs a program to its end. Builds print nothing for a long time, so only the group's limit ends one that hangs.
pub(super) async fn run_to_end(command: Command) -> anyhow::Result<bool> {
    let (mut child, group) = spawn(command)?;
    let status = child.wait().await?;
    Ok(group.passed(Some(status)))
}

/// A program's process group, which is killed as a whole if the caller stops waiting.
struct ProcessGroup(Option<Pid>);

impl ProcessGroup {
    /// Returns whether the program passed. A program without a status hangs and is killed.
    fn passed(mut self, status: Option<ExitStatus>) -> bool {
        if status.is_some() {
            self.0 = None;
        }
        status.is_some_and(|status| status.success())
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // It may be gone already.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

fn spawn(mut command: Command) -> anyhow::Result<(Child, ProcessGroup)> {
    command.stdin(Stdio::null()).process_group(0);
    let child = command.spawn().with_context(|| format!("cannot run {:?}", command.as_std().get_program()))?;
    let group = ProcessGroup(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    Ok((child, group))
}
