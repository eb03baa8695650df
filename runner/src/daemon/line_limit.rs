//! A limit of log lines for each key, such as an account.
//!
//! The service manager drops the lines of a service that logs too much (systemd: 10,000 in 30 s). No account should have the
//! lines of others dropped.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// The most lines that one account causes in one [`WINDOW`], in each place that logs for it.
pub(super) const OF_ACCOUNT_MAX: u32 = 500;
pub(super) const WINDOW: Duration = Duration::from_secs(10);

/// The lines of the present window, by key.
#[derive(Debug)]
pub(super) struct LineLimit<K>(HashMap<K, (Instant, u32)>);

impl<K> Default for LineLimit<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> LineLimit<K> {
    /// Counts a line; returns how many there were before it in the present window.
    pub(super) fn count(&mut self, key: K, now: Instant) -> u32 {
        self.0.retain(|_, (since, _)| now.duration_since(*since) < WINDOW);
        let (_, lines) = self.0.entry(key).or_insert((now, 0));
        *lines = lines.saturating_add(1);
        *lines - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_window_counts_from_zero() {
        let (mut limit, start) = (LineLimit::default(), Instant::now());
        assert_eq!([7, 7, 8].map(|key| limit.count(key, start)), [0, 1, 0]);
        assert_eq!(limit.count(7, start + WINDOW), 0);
        assert_eq!(limit.0.len(), 1, "what has no line is forgotten");
    }
}
