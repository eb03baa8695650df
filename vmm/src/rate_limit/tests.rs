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
