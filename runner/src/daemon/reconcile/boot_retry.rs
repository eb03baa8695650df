//! Decides when to retry a machine that did not boot.

use std::time::Duration;

use tokio::time::Instant;

use super::backoff::backoff;

/// The longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// The failed boots of one machine in a row.
#[derive(Debug, Default)]
pub(super) struct BootRetry {
    failed: u32,
    next: Option<Instant>,
}

impl BootRetry {
    /// Counts a failed boot.
    pub(super) fn fail(&mut self, now: Instant) {
        self.failed = self.failed.saturating_add(1);
        self.next = Some(now + backoff(self.failed, PAUSE_MAX));
    }

    /// Resets the count: a boot succeeded, or the machine should not run.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// When the next try is due; `None` if the machine did not fail during boot. A machine that failed after it ran is
    /// not started again, because its content may be the cause.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Whether the next try is due.
    pub(super) fn due(&self, now: Instant) -> bool {
        self.next.is_some_and(|next| next <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_boot_is_tried_again_later_each_time() {
        let start = Instant::now();
        let mut boot_retry = BootRetry::default();
        assert!(!boot_retry.due(start));
        for seconds in [1, 2, 4, 8] {
            boot_retry.fail(start);
            let due = start + Duration::from_secs(seconds);
            assert!(!boot_retry.due(due - Duration::from_millis(1)) && boot_retry.due(due), "{seconds}");
        }
        for _ in 0..20 {
            boot_retry.fail(start);
        }
        assert_eq!(boot_retry.next(), Some(start + PAUSE_MAX));
        boot_retry.reset();
        assert_eq!(boot_retry.next(), None);
        boot_retry.fail(start);
        assert_eq!(boot_retry.next(), Some(start + Duration::from_secs(1)));
    }
}
