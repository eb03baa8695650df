//! The processes of a subject. They end with the harness, and their last output is kept.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

/// One process, killed when dropped.
pub(crate) struct Process {
    child: Child,
    name: String,
    stderr: PathBuf,
}

/// A program with its arguments.
pub(crate) struct Program {
    /// The file, or a name to search in `PATH`.
    pub path: PathBuf,
    pub arguments: Vec<OsString>,
}

impl Program {
    /// The program at `path` with `arguments`.
    pub(crate) fn new(path: &Path, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self { path: path.to_owned(), arguments: arguments.into_iter().map(Into::into).collect() }
    }

    /// The command line as text.
    pub(crate) fn line(&self) -> String {
        let arguments = self.arguments.iter().map(|argument| argument.to_string_lossy());
        [self.path.to_string_lossy()].into_iter().chain(arguments).collect::<Vec<_>>().join(" ")
    }

    /// Starts the process. Standard error goes to a file in `folder`, standard output to `output` or to /dev/null. It
    /// starts through `setpriv`, so that the kernel kills it if the harness is killed.
    ///
    /// # Errors
    /// The program does not exist.
    pub(crate) fn start(&self, folder: &Path, output: Option<&Path>) -> anyhow::Result<Process> {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned();
        let stderr = folder.join(format!("{name}.stderr"));
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(&self.path).args(&self.arguments).stdin(Stdio::null());
        command.stdout(output.map(File::create).transpose()?.map_or(Stdio::null(), Stdio::from));
        command.stderr(File::create(&stderr)?);
        let child = command.spawn().with_context(|| format!("cannot run setpriv {}", self.path.display()))?;
        Ok(Process { child, name, stderr })
    }
}

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// # Errors
    /// The process has ended. The error includes the last line that it wrote.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        let said = fs::read(&self.stderr).unwrap_or_default();
        bail!("{} ended ({status}): {}", self.name, last_line(&String::from_utf8_lossy(&said)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last line that is not empty.
pub(crate) fn last_line(text: &str) -> &str {
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("there is no output")
}

/// Runs a command to its end, for at most five minutes, and returns its output.
///
/// # Errors
/// It cannot be run, fails, or takes too long.
pub(crate) fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new("timeout");
    let output = command.args(["--kill-after=5", "300", program]).args(arguments).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {} ({}): {}", arguments.join(" "), output.status, last_line(&said));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use std::time::Duration;

    #[test]
    fn a_process_that_ends_is_reported_with_its_last_line() {
        let folder = tempfile::tempdir().unwrap();
        let program = Program::new(Path::new("/bin/sh"), ["-c", "echo first >&2; echo 'no such disk' >&2; exit 3"]);
        assert!(program.line().starts_with("/bin/sh -c echo"));
        let mut process = program.start(folder.path(), None).unwrap();
        let error = clock::poll("end", Duration::from_secs(10), Duration::from_millis(5), || Ok(process.check().err()));
        let error = error.unwrap().to_string();
        assert!(error.contains("sh ended") && error.ends_with("no such disk"), "{error}");
    }

    #[test]
    fn a_dropped_process_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("output");
        let mut process =
            Program::new(Path::new("sh"), ["-c", "echo up; sleep 1000"]).start(folder.path(), Some(&output)).unwrap();
        let up = || Ok((fs::read_to_string(&output)? == "up\n").then_some(()));
        clock::poll("up", Duration::from_secs(10), Duration::from_millis(5), up).unwrap();
        process.check().unwrap();
        let pid = process.pid();
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_failed_command_is_reported_with_its_last_line() {
        assert_eq!(run("echo", &["a", "b"]).unwrap(), "a b\n");
        assert!(run("ls", &["/no/such"]).unwrap_err().to_string().contains("/no/such"));
        assert_eq!(last_line("a\nb\n\n"), "b");
        assert_eq!(last_line(""), "there is no output");
    }
}
