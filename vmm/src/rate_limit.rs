//! A token bucket for each of bytes and operations, and the timer that wakes a worker when tokens have flowed in again.
//!
//! A request passes while its buckets hold any tokens. It is then charged in full, even if a level becomes negative. So
//! a request larger than the burst is never stuck, and the rate over time is exact.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use garret_api::vmm::{Bucket, RateLimit};

use crate::timer::Timer;

const NANOS: i128 = 1_000_000_000;

/// One bucket. Its level is kept in tokens times nanoseconds, so that no refill is rounded away.
#[derive(Debug)]
struct TokenBucket {
    per_second: i128,
    full: i128,
    level: i128,
    refilled: Duration,
}

impl TokenBucket {
    fn new(bucket: Bucket) -> Self {
        let full = i128::from(bucket.burst.max(1)) * NANOS;
        Self { per_second: i128::from(bucket.per_second.max(1)), full, level: full, refilled: Duration::ZERO }
    }

    /// The time until the level is above zero; `None` if it is.
    fn wait(&mut self, now: Duration) -> Option<Duration> {
        let elapsed = now.saturating_sub(self.refilled);
        // Above 10^9 seconds of refill the bucket is full anyway; the bound keeps the product inside 128 bits.
        let elapsed = elapsed.min(Duration::from_secs(1_000_000_000));
        self.level = (self.level + elapsed.as_nanos() as i128 * self.per_second).min(self.full);
        self.refilled = self.refilled.max(now);
        if self.level > 0 {
            return None;
        }
        let nanos = -self.level / self.per_second + 1;
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    fn charge(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub(i128::from(tokens) * NANOS);
    }
}

/// Both buckets. Pure: the caller passes the time since the start.
#[derive(Debug)]
struct Buckets {
    bytes: Option<TokenBucket>,
    operations: Option<TokenBucket>,
}

impl Buckets {
    fn new(limit: Option<RateLimit>) -> Self {
        let limit = limit.unwrap_or(RateLimit { bytes: None, operations: None });
        Self { bytes: limit.bytes.map(TokenBucket::new), operations: limit.operations.map(TokenBucket::new) }
    }

    fn wait(&mut self, now: Duration) -> Option<Duration> {
        let bytes = self.bytes.as_mut().and_then(|bucket| bucket.wait(now));
        let operations = self.operations.as_mut().and_then(|bucket| bucket.wait(now));
        bytes.max(operations)
    }

    fn charge(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.charge(bytes);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.charge(1);
        }
    }

    fn unlimited(&self) -> bool {
        self.bytes.is_none() && self.operations.is_none()
    }
}

/// Limits the requests of one worker.
///
/// Before a request: [`RateLimiter::blocked`]; after it is taken: [`RateLimiter::charge`]. When blocked, the timer's
/// descriptor becomes readable as soon as a request would pass: the worker registers it, and calls
/// [`RateLimiter::elapsed`] when it fires.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    buckets: Buckets,
    start: Instant,
    timer: Timer,
    armed: bool,
}

impl RateLimiter {
    /// No limit if `limit` is absent or empty. Fails if the kernel does not create a timer.
    pub(crate) fn new(limit: Option<RateLimit>) -> io::Result<Self> {
        Ok(Self { buckets: Buckets::new(limit), start: Instant::now(), timer: Timer::new()?, armed: false })
    }

    /// Whether the next request has to wait; if so, the timer is running.
    pub(crate) fn blocked(&mut self) -> bool {
        if self.armed {
            return true;
        }
        if self.buckets.unlimited() {
            return false;
        }
        let Some(wait) = self.buckets.wait(self.start.elapsed()) else { return false };
        // A timer that cannot be set would hold the queue forever: let the request through instead.
        self.armed = self.timer.set(wait, Duration::ZERO).is_ok();
        self.armed
    }

    /// Counts one operation of `bytes` bytes.
    pub(crate) fn charge(&mut self, bytes: u64) {
        self.buckets.charge(bytes);
    }

    /// Must be called when the timer's descriptor is readable.
    pub(crate) fn elapsed(&mut self) {
        self.timer.clear();
        self.armed = false;
    }
}

impl AsRawFd for RateLimiter {
    /// Readable when the wait is over.
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::event::{PollFd, PollFlags, poll};

    fn bucket(per_second: u64, burst: u64) -> Option<Bucket> {
        Some(Bucket { per_second, burst })
    }

    fn buckets(bytes: Option<Bucket>, operations: Option<Bucket>) -> Buckets {
        Buckets::new(Some(RateLimit { bytes, operations }))
    }

    #[test]
    fn burst_passes_then_the_rate_holds() {
        let mut buckets = buckets(None, bucket(10, 3));
        let now = Duration::from_secs(5);
        for _ in 0..3 {
            assert_eq!(buckets.wait(now), None);
            buckets.charge(1_000_000);
        }
        let wait = buckets.wait(now).expect("the burst is used up");
        assert!(wait <= Duration::from_millis(1), "the level is zero, not negative: {wait:?}");
        buckets.charge(0);
        let wait = buckets.wait(now).unwrap();
        assert!(wait > Duration::from_millis(99) && wait <= Duration::from_millis(101), "{wait:?}");
        assert_eq!(buckets.wait(now + wait), None);
    }

    #[test]
    fn a_request_beyond_the_burst_passes_into_debt() {
        let mut buckets = buckets(bucket(1000, 10), None);
        assert_eq!(buckets.wait(Duration::ZERO), None);
        buckets.charge(5010);
        let wait = buckets.wait(Duration::ZERO).unwrap();
        assert!(wait.as_millis() == 5000, "{wait:?}");
    }

    #[test]
    fn both_buckets_must_have_tokens() {
        let mut buckets = buckets(bucket(1, 1_000_000), bucket(1, 1));
        buckets.charge(1);
        buckets.charge(1);
        assert!(buckets.wait(Duration::ZERO).is_some());
    }

    #[test]
    fn no_limit_never_blocks() {
        let mut limiter = RateLimiter::new(None).unwrap();
        for _ in 0..1000 {
            limiter.charge(u64::MAX);
            assert!(!limiter.blocked());
        }
    }

    #[test]
    fn the_timer_fires_when_a_request_would_pass() {
        let limit = RateLimit { bytes: bucket(1000, 1), operations: None };
        let mut limiter = RateLimiter::new(Some(limit)).unwrap();
        assert!(!limiter.blocked());
        limiter.charge(20);
        assert!(limiter.blocked());
        assert!(limiter.blocked(), "still blocked until the timer is seen");
        poll(&mut [PollFd::new(&limiter.timer, PollFlags::IN)], None).unwrap();
        limiter.elapsed();
        assert!(!limiter.blocked(), "the timer must not fire early");
    }

    proptest! {
        /// For any requests at any times: over any span, at most burst + rate x time + one request passes.
        #[test]
        fn never_faster_than_the_rate(
            per_second in 1..10_000_u64,
            burst in 1..10_000_u64,
            steps in proptest::collection::vec((0..2_000_000_000_u64, 0..20_000_u64), 1..200),
        ) {
            let mut buckets = buckets(bucket(per_second, burst), None);
            let (mut now, mut passed, mut largest) = (0_u64, 0_u128, 0_u64);
            for (step, bytes) in steps {
                now += step;
                if buckets.wait(Duration::from_nanos(now)).is_none() {
                    buckets.charge(bytes);
                    passed += u128::from(bytes);
                    largest = largest.max(bytes);
                }
                let bound = u128::from(burst) + u128::from(per_second) * u128::from(now) / 1_000_000_000 + u128::from(largest) + 1;
                prop_assert!(passed <= bound, "{passed} > {bound}");
            }
        }

        /// The returned wait is long enough, and extreme limits do not overflow.
        #[test]
        fn the_wait_is_enough(per_second in 1..=u64::MAX, burst in 1..=u64::MAX, bytes in any::<u64>(), now in any::<u32>()) {
            let mut buckets = buckets(bucket(per_second, burst), None);
            let now = Duration::from_secs(u64::from(now));
            buckets.wait(now);
            buckets.charge(bytes);
            if let Some(wait) = buckets.wait(now) {
                // A longer wait may exceed the bound on one refill.
                if wait < Duration::from_secs(1_000_000_000) {
                    prop_assert_eq!(buckets.wait(now + wait), None);
                }
            }
        }
    }
}
