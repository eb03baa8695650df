//! How long to wait before the next try.

use std::time::Duration;

/// The pause after the first failure.
const FIRST: Duration = Duration::from_secs(1);

/// The pause after this many failures in a row, 1 or more: it doubles up to `max`.
pub(super) fn backoff(failures: u32, max: Duration) -> Duration {
    let doublings = failures.saturating_sub(1).min(u32::BITS - 1);
    FIRST.saturating_mul(1 << doublings).min(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let max = Duration::from_secs(60);
        for (failures, seconds) in
            [(0, 1), (1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (8, 60), (1000, 60), (u32::MAX, 60)]
        {
            assert_eq!(backoff(failures, max).as_secs(), seconds, "{failures}");
        }
    }
}
