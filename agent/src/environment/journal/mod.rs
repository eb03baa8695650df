//! The progress lines of one `up`, kept so that a client that joins later receives all of them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use garret_api::Problem;
use garret_api::agent::Progress;
use tokio::sync::{mpsc, watch};

/// The most bytes of steps' text that is kept; the oldest lines are dropped first.
const KEPT_MAX: usize = 1 << 20;
/// Lines that may wait for one receiver. A slower receiver reads from the kept lines.
const WAITING: usize = 64;

/// The lines of one run of `up`.
#[derive(Debug)]
pub(super) struct Journal {
    lines: Mutex<Lines>,
    /// The number of lines written so far.
    written: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Lines {
    /// The number of the oldest line that is kept.
    first: u64,
    kept: VecDeque<Progress>,
    bytes: usize,
}

/// The next line for a reader.
enum Next {
    Line(u64, Box<Progress>),
    Nothing,
}

impl Journal {
    /// An empty journal.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { lines: Mutex::default(), written: watch::Sender::new(0) })
    }

    /// Adds a line.
    pub(super) fn write(&self, line: Progress) {
        let mut lines = self.lock();
        lines.bytes += weight(&line);
        lines.kept.push_back(line);
        while lines.bytes > KEPT_MAX && lines.kept.len() > 1 {
            let gone = lines.kept.pop_front();
            lines.bytes -= gone.as_ref().map_or(0, weight);
            lines.first += 1;
        }
        let written = lines.first + lines.kept.len() as u64;
        drop(lines);
        self.written.send_replace(written);
    }

    /// All lines from the first to the last one, which is `Ready` or `Failed`. If lines were dropped before a slow
    /// receiver read them, the receiver continues with the oldest line that is kept.
    pub(super) fn follow(self: &Arc<Self>) -> mpsc::Receiver<Progress> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let journal = self.clone();
        tokio::spawn(async move {
            let mut written = journal.written.subscribe();
            let mut wanted = 0;
            loop {
                written.borrow_and_update();
                while let Next::Line(number, line) = journal.read(wanted) {
                    let last = is_last(&line);
                    wanted = number + 1;
                    if sender.send(*line).await.is_err() || last {
                        return;
                    }
                }
                tokio::select! {
                    () = sender.closed() => return,
                    changed = written.changed() => if changed.is_err() { return },
                }
            }
        });
        receiver
    }

    fn read(&self, wanted: u64) -> Next {
        let lines = self.lock();
        let number = wanted.max(lines.first);
        let line = usize::try_from(number - lines.first).ok().and_then(|index| lines.kept.get(index));
        line.map_or(Next::Nothing, |line| Next::Line(number, Box::new(line.clone())))
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_last(line: &Progress) -> bool {
    matches!(line, Progress::Ready { .. } | Progress::Failed { .. })
}

/// A line's size in bytes: its text, and a fixed amount for the other fields.
fn weight(line: &Progress) -> usize {
    let text = match line {
        Progress::Output { text, .. } => text.len(),
        _ => 0,
    };
    text + 64
}

/// A step that failed, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StepFailed {
    pub step: String,
    pub problem: Problem,
}

impl Journal {
    /// Runs one step and reports its start, its output and, on success, its end. The caller reports a failure, once, as
    /// the last line.
    pub(super) async fn step<T>(
        self: &Arc<Self>,
        name: &str,
        work: impl AsyncFnOnce(&Output) -> Result<T, Problem>,
    ) -> Result<T, StepFailed> {
        self.write(Progress::Started { step: name.to_owned() });
        let begun = Instant::now();
        let output = Output { journal: self.clone(), step: name.to_owned(), open: Mutex::default() };
        let result = work(&output).await;
        output.flush();
        let done = result.map_err(|problem| StepFailed { step: name.to_owned(), problem })?;
        let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.write(Progress::Finished { step: name.to_owned(), ms });
        Ok(done)
    }
}

impl Journal {
    /// Runs work without progress lines. Its failure is returned as a failed step of this name.
    pub(super) async fn quiet_step<T>(
        &self,
        name: &str,
        work: impl AsyncFnOnce() -> Result<T, Problem>,
    ) -> Result<T, StepFailed> {
        work().await.map_err(|problem| StepFailed { step: name.to_owned(), problem })
    }
}

/// The destination of a step's output.
#[derive(Debug)]
pub(super) struct Output {
    journal: Arc<Journal>,
    step: String,
    /// The first bytes of a character whose remaining bytes have not arrived yet.
    open: Mutex<Vec<u8>>,
}

impl Output {
    /// Takes output of a process. A character may be split between two calls.
    pub(super) fn bytes(&self, bytes: &[u8]) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.extend_from_slice(bytes);
        let whole = open.len() - unfinished(&open);
        let text: Vec<u8> = open.drain(..whole).collect();
        drop(open);
        self.text(&String::from_utf8_lossy(&text));
    }

    /// Adds a line written by the agent.
    pub(super) fn line(&self, line: &str) {
        self.text(&format!("{line}\n"));
    }

    fn text(&self, text: &str) {
        if !text.is_empty() {
            self.journal.write(Progress::Output { step: self.step.clone(), text: text.to_owned() });
        }
    }

    fn flush(&self) {
        let rest = std::mem::take(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner));
        self.text(&String::from_utf8_lossy(&rest));
    }
}

/// The number of bytes at the end that begin an incomplete character, at most 3.
fn unfinished(bytes: &[u8]) -> usize {
    match bytes.utf8_chunks().last() {
        Some(chunk) => {
            let invalid = chunk.invalid();
            let begins = std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if begins { invalid.len() } else { 0 }
        }
        None => 0,
    }
}

#[cfg(test)]
mod tests;
