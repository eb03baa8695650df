//! Rate-limited log lines for events that a guest can cause: a guest must not fill the host's disk with them.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The most lines in one window.
const LINES: u32 = 5;
/// The length of the window.
const WINDOW: Duration = Duration::from_secs(10);

/// Admits [`LINES`] lines per [`WINDOW`]; one per kind of line and device.
#[derive(Debug, Default)]
pub(crate) struct LogLimiter {
    window: Mutex<Option<Window>>,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    lines: u32,
    suppressed: u64,
}

impl LogLimiter {
    /// Calls `log` with the number of lines skipped since the last logged line, unless the limit is reached.
    pub(crate) fn log(&self, log: impl FnOnce(u64)) {
        if let Some(suppressed) = self.admit(Instant::now()) {
            log(suppressed);
        }
    }

    fn admit(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let window = window.get_or_insert(Window { since: now, lines: 0, suppressed: 0 });
        if now.duration_since(window.since) >= WINDOW {
            (window.since, window.lines) = (now, 0);
        }
        if window.lines == LINES {
            window.suppressed += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_limit_are_counted_not_logged() {
        let (limiter, start) = (LogLimiter::default(), Instant::now());
        for _ in 0..LINES {
            assert_eq!(limiter.admit(start), Some(0));
        }
        assert_eq!(limiter.admit(start), None);
        assert_eq!(limiter.admit(start + WINDOW / 2), None);
        assert_eq!(limiter.admit(start + WINDOW), Some(2));
        assert_eq!(limiter.admit(start + WINDOW), Some(0));
    }
}
