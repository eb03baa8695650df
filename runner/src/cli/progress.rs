//! Shows the steps of a starting environment: on a terminal with a line that is updated, otherwise in plain lines. All
//! of it is on standard error, because standard output belongs to the command.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use garret_api::agent::Progress;
use indicatif::{ProgressBar, ProgressStyle};

use super::output::escape_controls;

/// A line longer than this, in bytes, is shown before it is complete.
const LINE_MAX: usize = 64 * 1024;

/// The displayed steps and the current line.
pub(super) struct ProgressDisplay {
    bar: Option<ProgressBar>,
    /// Output of a step that is not a whole line yet.
    rest: String,
}

impl ProgressDisplay {
    /// Detects whether standard error is a terminal.
    pub(super) fn new() -> Self {
        let bar = io::stderr().is_terminal().then(ProgressBar::new_spinner);
        if let Some(bar) = &bar {
            let style = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        Self { bar, rest: String::new() }
    }

    /// Shows one progress report of a step.
    pub(super) fn step(&mut self, progress: &Progress) {
        match progress {
            Progress::Started { step } => match &self.bar {
                Some(bar) => {
                    bar.set_message(step.clone());
                    bar.reset_elapsed();
                }
                None => self.line(&format!("{step} …")),
            },
            Progress::Output { text, .. } => {
                self.rest.push_str(text);
                for line in whole_lines(&mut self.rest) {
                    self.line(&line);
                }
                if self.rest.len() > LINE_MAX {
                    self.flush();
                }
            }
            Progress::Finished { step, ms } => {
                self.flush();
                self.line(&format!("{step}: {}", seconds(*ms)));
            }
            Progress::Unknown => {}
            Progress::Ready { .. } | Progress::Failed { .. } => self.flush(),
        }
    }

    fn flush(&mut self) {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            self.line(&rest);
        }
    }

    fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(escape_controls(line)),
            // The command continues when the reader of its progress has exited.
            None => drop(writeln!(io::stderr(), "{line}")),
        }
    }
}

impl Drop for ProgressDisplay {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Removes the whole lines from `text` and returns them. A lone carriage return restarts the line, as on a terminal.
fn whole_lines(text: &mut String) -> Vec<String> {
    let Some(end) = text.rfind('\n') else { return Vec::new() };
    let rest = text.split_off(end + 1);
    let lines = std::mem::replace(text, rest);
    lines.lines().map(|line| line.rsplit('\r').find(|part| !part.is_empty()).unwrap_or_default().to_owned()).collect()
}

fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_lines() {
        let mut rest = String::new();
        let mut feed = |piece: &str| {
            rest.push_str(piece);
            whole_lines(&mut rest)
        };
        assert_eq!(feed("one\ntw"), ["one"]);
        assert_eq!(feed("o"), [""; 0]);
        assert_eq!(feed("\r\n10 %\r20 %\r30 %\nthree"), ["two", "30 %"]);
        assert_eq!(rest, "three");
    }

    #[test]
    fn times_are_short() {
        assert_eq!((seconds(0), seconds(950), seconds(61_234)), ("0.0 s".into(), "0.9 s".into(), "61.2 s".into()));
    }
}
