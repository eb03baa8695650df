//! The monotonic clock, which also stamps the kernel's traces.

use std::time::{Duration, Instant};

use anyhow::bail;
use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since the host booted.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Calls `again` every `step` until it returns a value.
///
/// # Errors
/// `again` fails, or `deadline` has passed.
pub(crate) fn poll<T>(
    what: &str,
    deadline: Duration,
    step: Duration,
    mut again: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let until = Instant::now() + deadline;
    loop {
        if let Some(answer) = again()? {
            return Ok(answer);
        }
        if Instant::now() >= until {
            bail!("{what}: not within {} s", deadline.as_secs());
        }
        std::thread::sleep(step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_no_longer_than_its_deadline() {
        let mut left = 3;
        let counted = poll("count", Duration::from_secs(5), Duration::ZERO, || {
            left -= 1;
            Ok((left == 0).then_some("counted"))
        });
        assert_eq!(counted.unwrap(), "counted");
        let late: anyhow::Result<()> = poll("never", Duration::from_millis(5), Duration::from_millis(1), || Ok(None));
        assert_eq!(late.unwrap_err().to_string(), "never: not within 0 s");
        assert!(now_ns() > 0);
    }
}
