//! Messages of the guest: lines of its console that begin with `@bench`.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// A message of the guest.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Mark {
    /// The guest has started, or is ready to work.
    Ready,
    /// A case begins. For a moment the guest does nothing, so that the host can read its counters.
    Begin(String),
    /// A case has ended, with this exit status and this duration by the guest's clock. The guest pauses again.
    End {
        case: String,
        /// The command's exit status.
        status: i32,
        /// Its duration, in seconds.
        seconds: f64,
    },
    /// Output of a command that the harness parses.
    Value {
        name: String,
        text: String,
    },
    Done,
}

/// Parses one line of the console; `None` if it is no message.
fn parse(line: &str) -> Option<Mark> {
    // The kernel may have printed text before it without an end of line.
    let (_, said) = line.split_once("@bench ")?;
    let (word, rest) = said.trim_end().split_once(' ').unwrap_or((said.trim_end(), ""));
    match word {
        "ready" => Some(Mark::Ready),
        "done" => Some(Mark::Done),
        "begin" => Some(Mark::Begin(rest.to_owned())),
        "end" => {
            let mut words = rest.split(' ');
            let (case, status, micros) = (words.next()?, words.next()?, words.next()?);
            let seconds = micros.parse::<f64>().ok()? / 1e6;
            Some(Mark::End { case: case.to_owned(), status: status.parse().ok()?, seconds })
        }
        "value" => {
            let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
            Some(Mark::Value { name: name.to_owned(), text: text.to_owned() })
        }
        _ => None,
    }
}

/// Reads a console's log as it grows.
pub(crate) struct Console {
    path: PathBuf,
    read: u64,
    /// The beginning of an incomplete line.
    rest: Vec<u8>,
}

impl Console {
    /// Reads the log at `path`, which need not exist yet.
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), read: 0, rest: Vec::new() }
    }

    /// Returns the messages since the last call.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(crate) fn marks(&mut self) -> anyhow::Result<Vec<Mark>> {
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            file => file?,
        };
        file.seek(SeekFrom::Start(self.read))?;
        self.read += file.read_to_end(&mut self.rest)? as u64;
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return Ok(Vec::new()) };
        let lines: Vec<u8> = self.rest.drain(..=end).collect();
        Ok(String::from_utf8_lossy(&lines).lines().filter_map(parse).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn only_bench_lines_are_messages() {
        let value = |name: &str, text: &str| Mark::Value { name: name.into(), text: text.into() };
        for (line, expected) in [
            ("@bench ready\r", Some(Mark::Ready)),
            ("[    0.3] random: @bench done", Some(Mark::Done)),
            ("@bench begin git_status", Some(Mark::Begin("git_status".into()))),
            ("@bench end find 0 1500000\r", Some(Mark::End { case: "find".into(), status: 0, seconds: 1.5 })),
            ("@bench end find 0", None),
            ("@bench end find zero 1", None),
            ("@bench value fio 3;fio-3.39;x y", Some(value("fio", "3;fio-3.39;x y"))),
            ("@bench value note", Some(value("note", ""))),
            ("@bench", None),
            ("garret-init: hello", None),
        ] {
            assert_eq!(parse(line), expected, "{line}");
        }
    }

    #[test]
    fn a_log_is_read_as_it_grows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let mut console = Console::new(&path);
        assert_eq!(console.marks().unwrap(), []);
        let mut file = File::create(&path).unwrap();
        file.write_all(b"@bench rea").unwrap();
        assert_eq!(console.marks().unwrap(), []);
        file.write_all(b"dy\r\n@bench begin a\nnoise\n@ben").unwrap();
        assert_eq!(console.marks().unwrap(), [Mark::Ready, Mark::Begin("a".into())]);
        file.write_all(b"ch done\n").unwrap();
        assert_eq!(console.marks().unwrap(), [Mark::Done]);
    }
}
