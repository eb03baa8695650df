//! Failures of the host's file, logged once per episode: on a full disk, every write that needs a new block fails.

use std::time::{Duration, Instant};

/// An episode is over when nothing has failed for this time.
const EPISODE_GAP: Duration = Duration::from_secs(60);

/// The time of the host's last failure.
#[derive(Debug, Default)]
pub(super) struct Failures(Option<Instant>);

impl Failures {
    /// Notes a failure. Returns true if it begins an episode.
    pub(super) fn note(&mut self, now: Instant) -> bool {
        let before = self.0.replace(now);
        before.is_none_or(|before| now.duration_since(before) >= EPISODE_GAP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_episode_is_logged_once_and_ends_with_quiet() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        for (seconds, begins) in [(0, true), (0, false), (59, false), (118, false), (178, true), (179, false)] {
            assert_eq!(failures.note(start + Duration::from_secs(seconds)), begins, "after {seconds} s");
        }
    }
}
