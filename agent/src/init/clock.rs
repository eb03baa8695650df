//! The guest's clock follows the host's, which KVM shows as a PTP clock.
//!
//! Nothing else would keep the guest's clock right. The kernel takes the time from the host at the start of the boot,
//! then counts timer interrupts until it has a clock source; a busy host delivers fewer of them. Later the guest's
//! clock follows the host's counter, without the corrections that NTP makes on the host.

#![allow(unsafe_code, reason = "adjtimex has no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, DynamicClockId, Timespec, clock_gettime, clock_gettime_dynamic, clock_settime};

const HOST: &str = "/dev/ptp0";
/// The first interval after a step; it doubles up to [`INTERVAL_MAX`], because an idle guest should sleep.
const INTERVAL: Duration = Duration::from_secs(4);
const INTERVAL_MAX: Duration = Duration::from_secs(64);
/// An offset of at least this many nanoseconds is stepped, a smaller one is slewed: the kernel's loop accepts up to
/// half a second.
const STEP: i64 = 100_000_000;
/// The kernel's loop corrects a 2^(2 + this)th of the offset each second, and learns the frequency from the remaining
/// offset.
const TIME_CONSTANT: libc::c_long = 2;
/// Number of readings; the one that took the shortest time is used.
const READINGS: usize = 5;

/// The clock, and the time of the next check.
pub(super) struct Clock {
    host: File,
    due: Instant,
    interval: Duration,
    /// The last correction failed. A failure is reported once.
    failed: bool,
}

impl Clock {
    /// Sets the guest's clock to the host's. Returns `None` if the host has no clock to follow: KVM offers one only
    /// where the host's own clock source is the TSC.
    pub(super) fn open() -> Option<Self> {
        let host = File::open(HOST)
            .inspect_err(|error| super::say(format_args!("the clock does not follow the host's: {HOST}: {error}")));
        let mut clock = Self { host: host.ok()?, due: Instant::now(), interval: INTERVAL, failed: false };
        let set = clock.measure().and_then(|reading| step(reading.offset));
        clock.note(set, Instant::now());
        Some(clock)
    }

    /// When [`Self::follow`] must be called next.
    pub(super) fn deadline(&self) -> Instant {
        self.due
    }

    /// Corrects the clock if it is due.
    pub(super) fn follow(&mut self, now: Instant) {
        if now < self.due {
            return;
        }
        let corrected = self.measure().and_then(|reading| match reading.correction() {
            Correction::None => Ok(false),
            Correction::Slew => slew(reading.offset).map(|()| false),
            Correction::Step => step(reading.offset).map(|()| true),
        });
        self.interval = match corrected {
            Ok(true) => INTERVAL,
            _ => (self.interval * 2).min(INTERVAL_MAX),
        };
        self.note(corrected.map(drop), now);
    }

    fn note(&mut self, corrected: io::Result<()>, now: Instant) {
        if let (Err(error), false) = (&corrected, self.failed) {
            super::say(format_args!("the clock cannot follow the host's: {error}"));
        }
        self.failed = corrected.is_err();
        self.due = now + self.interval;
    }

    fn measure(&self) -> io::Result<Reading> {
        let mut best: Option<Reading> = None;
        for _ in 0..READINGS {
            let before = clock_gettime(ClockId::Realtime);
            let host = clock_gettime_dynamic(DynamicClockId::Dynamic(self.host.as_fd()))?;
            let reading = Reading::of(before, host, clock_gettime(ClockId::Realtime));
            best = Some(best.map_or(reading, |best| if reading.window < best.window { reading } else { best }));
        }
        best.ok_or_else(|| io::Error::other("no reading"))
    }
}

/// The difference between the host's clock and the guest's, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    /// The host's time minus the guest's time.
    offset: i64,
    /// How long the reading took: the error of the offset is at most half of it.
    window: i64,
}

#[derive(Debug, PartialEq, Eq)]
enum Correction {
    None,
    Slew,
    Step,
}

impl Reading {
    /// The host's clock was read between the two readings of the guest's clock.
    fn of(before: Timespec, host: Timespec, after: Timespec) -> Self {
        let [before, host, after] = [before, host, after].map(nanoseconds);
        let clamp = |value: i128| value.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        Self { offset: clamp(host - (before + after) / 2), window: clamp(after - before) }
    }

    fn correction(&self) -> Correction {
        match self.offset.unsigned_abs() {
            offset if offset >= STEP as u64 => Correction::Step,
            offset if offset > self.window.unsigned_abs() / 2 => Correction::Slew,
            _ => Correction::None,
        }
    }
}

fn nanoseconds(time: Timespec) -> i128 {
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}

fn step(offset: i64) -> io::Result<()> {
    let now = nanoseconds(clock_gettime(ClockId::Realtime)) + i128::from(offset);
    let tv_sec = i64::try_from(now.div_euclid(1_000_000_000)).map_err(io::Error::other)?;
    clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec: now.rem_euclid(1_000_000_000) as i64 })?;
    // Stops the kernel's loop, which would mistake the step for elapsed time. The learned frequency stays.
    adjust(|request| request.modes = libc::ADJ_STATUS)
}

fn slew(offset: i64) -> io::Result<()> {
    adjust(|request| {
        // Resets the error estimates: the kernel treats the clock as unsynchronized once they have grown.
        let errors = libc::ADJ_MAXERROR | libc::ADJ_ESTERROR;
        request.modes = libc::ADJ_OFFSET | libc::ADJ_STATUS | libc::ADJ_NANO | libc::ADJ_TIMECONST | errors;
        request.status = libc::STA_PLL;
        request.constant = TIME_CONSTANT;
        request.offset = offset;
    })
}

fn adjust(fill: impl FnOnce(&mut libc::timex)) -> io::Result<()> {
    // SAFETY: the structure holds only integers, for which zero is a valid value.
    let mut request: libc::timex = unsafe { std::mem::zeroed() };
    fill(&mut request);
    // SAFETY: the kernel reads and writes this one structure.
    match unsafe { libc::adjtimex(&mut request) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(tv_sec: i64, tv_nsec: i64) -> Timespec {
        Timespec { tv_sec, tv_nsec }
    }

    #[test]
    fn offset_is_taken_from_the_middle_of_the_reading() {
        for (before, host, after, offset, window) in [
            (at(10, 0), at(10, 500), at(10, 1000), 0, 1000),
            (at(10, 999_999_000), at(12, 500_000_000), at(11, 1000), 1_500_000_000, 2000),
            (at(10, 0), at(8, 999_999_999), at(10, 2), -1_000_000_002, 2),
            (at(0, 0), at(i64::MAX, 0), at(0, 0), i64::MAX, 0),
            (at(0, 0), at(i64::MIN, 0), at(0, 0), i64::MIN, 0),
        ] {
            assert_eq!(Reading::of(before, host, after), Reading { offset, window }, "{host:?}");
        }
    }

    #[test]
    fn only_what_is_certain_is_corrected() {
        for (offset, window, correction) in [
            (0, 0, Correction::None),
            (1, 0, Correction::Slew),
            (-500, 1000, Correction::None),
            (-501, 1000, Correction::Slew),
            (STEP - 1, 1000, Correction::Slew),
            (-STEP, 1000, Correction::Step),
            (i64::MIN, i64::MAX, Correction::Step),
        ] {
            assert_eq!(Reading { offset, window }.correction(), correction, "{offset} {window}");
        }
    }

    /// Simulates the kernel's loop (`kernel/time/ntp.c`) with our intervals, for a guest whose clock rate is wrong by
    /// `drift`. Returns the largest offset overall, and the largest after ten minutes.
    fn simulate(drift: f64) -> (f64, f64) {
        let (mut offset, mut pending, mut frequency) = (0.0_f64, 0.0, 0.0);
        let (mut interval, mut since, mut largest, mut later) = (INTERVAL.as_secs(), 0, 0.0_f64, 0.0_f64);
        let rate = f64::from(1 << (2 + TIME_CONSTANT));
        for second in 0..3600 {
            let chunk = pending / rate;
            pending -= chunk;
            offset += drift - frequency - chunk;
            since += 1;
            largest = largest.max(offset.abs());
            if second > 600 {
                later = later.max(offset.abs());
            }
            if since == interval {
                let trusted = since.min(1 << (3 + TIME_CONSTANT)) as f64;
                frequency += offset * trusted / (16.0 * rate * rate);
                pending = offset;
                (since, interval) = (0, (interval * 2).min(INTERVAL_MAX.as_secs()));
            }
        }
        (largest, later)
    }

    #[test]
    fn drift_is_learned_before_it_adds_up() {
        for ppm in [-100.0, -10.0, 10.0, 100.0] {
            let (largest, later) = simulate(ppm * 1e-6);
            assert!(largest < 0.007, "{ppm} ppm: {largest} s");
            assert!(later < 0.001, "{ppm} ppm: {later} s");
        }
    }
}
