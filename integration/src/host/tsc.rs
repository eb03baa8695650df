//! The frequency of this machine's time-stamp counter.

use std::arch::x86_64::_rdtsc;
use std::time::{Duration, Instant};

/// The number of measurements. A switch to another process between the two clock readings falsifies one.
const INTERVALS: usize = 5;
const INTERVAL: Duration = Duration::from_millis(20);

/// Measures the frequency against the system's clock, in kHz, to some thousandths. Takes a tenth of a second.
pub(super) fn khz() -> u64 {
    let mut measured: Vec<u64> = (0..INTERVALS).map(|_| measure()).collect();
    measured.sort_unstable();
    measured[INTERVALS / 2]
}

fn measure() -> u64 {
    let (begun, first) = (Instant::now(), ticks());
    std::thread::sleep(INTERVAL);
    let (elapsed, ticks) = (begun.elapsed(), ticks() - first);
    let khz = u128::from(ticks) * 1_000_000 / elapsed.as_nanos();
    u64::try_from(khz).expect("a frequency in kHz has 64 bits")
}

#[allow(unsafe_code, reason = "rdtsc has no safe wrapper")]
fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and it only reads.
    unsafe { _rdtsc() }
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_measurements_agree_within_a_tenth() {
        let (one, other) = (super::khz(), super::khz());
        assert!(one.abs_diff(other) * 10 < one, "{one} kHz, {other} kHz");
    }
}
