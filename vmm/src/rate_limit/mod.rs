//! A token bucket for each of bytes and operations, and the timer that wakes a worker when tokens have flowed in again.
//!
//! A request passes while its buckets hold any tokens. It is then charged in full, even if a level becomes negative. So
//! a request larger than the burst is never stuck, and the rate over time is exact.

#[cfg(test)]
mod tests;

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
