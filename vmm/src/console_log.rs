//! The log of the guest's consoles: a file of bounded size that keeps the newest output.
//!
//! When the file is full, its older half is dropped. So it never exceeds its limit and, once it was full, always holds
//! at least half of it. The log also detects the kernel's panic message.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;

use garret_api::vmm::CONSOLE_LOG_MAX;

/// The beginning of the message that Linux prints when it panics.
const PANIC: &[u8] = b"Kernel panic - not syncing";

/// A shared console log. Errors of the file (a full disk) are ignored: the machine must continue.
pub(crate) struct ConsoleLog {
    inner: Mutex<Inner>,
    panicked: Box<dyn Fn() + Send + Sync>,
}

struct Inner {
    sink: Sink,
    panic_matcher: Option<PanicMatcher>,
}

enum Sink {
    Stdout,
    File { file: File, len: u64, max: u64 },
}

impl ConsoleLog {
    /// Opens and empties the file at `path`; without a path, prints to standard output. `panicked` is called once, at
    /// the first panic message.
    pub(crate) fn open(path: Option<&Path>, panicked: impl Fn() + Send + Sync + 'static) -> io::Result<Self> {
        let sink = match path {
            None => Sink::Stdout,
            Some(path) => {
                let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
                Sink::File { file, len: 0, max: CONSOLE_LOG_MAX }
            }
        };
        Ok(Self {
            inner: Mutex::new(Inner { sink, panic_matcher: Some(PanicMatcher::default()) }),
            panicked: Box::new(panicked),
        })
    }

    /// Appends.
    pub(crate) fn write(&self, bytes: &[u8]) {
        let mut inner = self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let _ = inner.sink.append(bytes);
        // Once: a guest that repeats the line must not fill the queue of events.
        if inner.panic_matcher.as_mut().is_some_and(|panic_matcher| panic_matcher.find_in(bytes)) {
            inner.panic_matcher = None;
            (self.panicked)();
        }
    }
}

impl Sink {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Sink::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes)?;
                out.flush()
            }
            Sink::File { file, len, max } => {
                let bytes = match bytes.len().checked_sub(*max as usize) {
                    Some(excess) => {
                        *len = 0;
                        &bytes[excess..]
                    }
                    None => bytes,
                };
                if *len + bytes.len() as u64 > *max {
                    keep_newest(file, len, (*max / 2).min(*max - bytes.len() as u64))?;
                }
                file.write_all_at(bytes, *len)?;
                *len += bytes.len() as u64;
                Ok(())
            }
        }
    }
}

/// Moves the last `keep` bytes to the front.
fn keep_newest(file: &File, len: &mut u64, keep: u64) -> io::Result<()> {
    let keep = keep.min(*len);
    let mut tail = vec![0; keep as usize];
    file.read_exact_at(&mut tail, *len - keep)?;
    file.write_all_at(&tail, 0)?;
    file.set_len(keep)?;
    *len = keep;
    Ok(())
}

/// Finds [`PANIC`] in a stream that comes in pieces of any size.
#[derive(Default)]
struct PanicMatcher {
    matched: usize,
}

impl PanicMatcher {
    fn find_in(&mut self, bytes: &[u8]) -> bool {
        let mut seen = false;
        for byte in bytes {
            // The first byte does not occur again in the text's matched part, so a mismatch starts over at this byte.
            self.matched = match *byte {
                byte if byte == PANIC[self.matched] => self.matched + 1,
                byte if byte == PANIC[0] => 1,
                _ => 0,
            };
            if self.matched == PANIC.len() {
                seen = true;
                self.matched = 0;
            }
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_panic_is_seen_in_pieces_of_any_size() {
        let text = b"x\r\n[    1.0] Kernel panKernel panic - not syncing: VFS: Unable to mount root fs\r\n";
        for piece in 1..text.len() {
            let mut panic_matcher = PanicMatcher::default();
            assert_eq!(text.chunks(piece).filter(|chunk| panic_matcher.find_in(chunk)).count(), 1, "pieces of {piece}");
        }
        assert!(!PanicMatcher::default().find_in(b"Kernel panic - no"));
    }

    #[test]
    fn the_first_byte_of_the_text_occurs_once() {
        assert_eq!(PANIC.iter().filter(|byte| **byte == PANIC[0]).count(), 1);
    }

    #[test]
    fn the_log_tells_of_a_panic() {
        let seen = Arc::new(AtomicUsize::new(0));
        let count = seen.clone();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let log = ConsoleLog::open(Some(&path), move || _ = count.fetch_add(1, Ordering::Relaxed)).unwrap();
        log.write(b"all is well\n");
        assert_eq!(seen.load(Ordering::Relaxed), 0);
        log.write(PANIC);
        log.write(PANIC);
        assert_eq!(seen.load(Ordering::Relaxed), 1);
        assert_eq!(std::fs::read(&path).unwrap(), [b"all is well\n", PANIC, PANIC].concat());
    }

    proptest! {
        #[test]
        fn the_file_keeps_the_newest_and_stays_bounded(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..60)) {
            const MAX: u64 = 128;
            let mut sink = Sink::File { file: tempfile::tempfile().unwrap(), len: 0, max: MAX };
            let mut all = Vec::new();
            for piece in pieces {
                sink.append(&piece).unwrap();
                all.extend_from_slice(&piece);
                let Sink::File { file, len, .. } = &sink else { unreachable!() };
                let mut kept = vec![0; *len as usize];
                file.read_exact_at(&mut kept, 0).unwrap();
                prop_assert_eq!(file.metadata().unwrap().len(), *len);
                prop_assert!(*len <= MAX);
                prop_assert!(*len >= (all.len() as u64).min(MAX / 2));
                prop_assert!(all.ends_with(&kept));
            }
        }
    }
}
