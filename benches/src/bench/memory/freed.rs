//! Memory that a program of the guest has freed: how soon it returns to the host, with and without a request. With a
//! request, it also measures how fast the memory is taken, and how fast it returns to the guest.

use std::thread;
use std::time::{Duration, Instant};

use super::course::Recorder;
use super::guest::{Guest, fill};
use super::means::Means;
use crate::bench::Measurement;
use crate::process::Process;
use crate::result::Unit;
use crate::subject::Running;

/// Poll interval of resident memory.
const EVERY: Duration = Duration::from_millis(50);
/// Poll interval of the guest's progress, as the VMM reports it.
const ASK: Duration = Duration::from_millis(10);
/// Stock free page reporting takes about 30 s.
const UNASKED: Duration = Duration::from_secs(40);
/// A guest that has not followed a request by then does not follow it.
const ASKED: Duration = Duration::from_secs(20);
/// The share of a request that counts as nearly all. The last of it may be in use.
const NEARLY: f64 = 0.9;

/// Measures freed memory without a request of the host.
///
/// # Errors
/// The machine ends, or its guest cannot be reached.
pub(super) fn unasked(guest: &mut Guest<'_>, mib: u32) -> anyhow::Result<Measurement> {
    let mut freed = Freed::by(guest, mib)?;
    watch(&mut guest.work.running, UNASKED, |running| {
        freed.recorder.look([running])?;
        Ok(freed.returned().is_some())
    })?;
    let detail = format!("{mib} MiB freed, without a request, until 90 % have returned to the host; aim: at most 5 s");
    Ok(freed.measured("freed_to_host_ms", UNASKED, detail))
}

/// Requests the memory at the moment it is freed, and then returns it.
///
/// # Errors
/// As [`unasked`], or the VMM refuses.
pub(super) fn asked(guest: &mut Guest<'_>, mib: u32) -> anyhow::Result<Vec<Measurement>> {
    let running = &guest.work.running;
    let means = Means::of(running.control.as_ref(), mib)?;
    let mut freed = Freed::by(guest, mib)?;
    let mut taken = Transfer::begin(mib);
    means.ask(guest.work.running.control.as_ref(), mib)?;
    watch(&mut guest.work.running, ASKED, |running| {
        freed.recorder.look([running])?;
        taken.note(means.taken(running.control.as_ref())?);
        Ok(taken.is_done() && freed.returned().is_some())
    })?;
    let mut returned = Transfer::begin(means.taken(guest.work.running.control.as_ref())?);
    means.ask(guest.work.running.control.as_ref(), 0)?;
    watch(&mut guest.work.running, ASKED, |running| {
        returned.note(returned.mib.saturating_sub(means.taken(running.control.as_ref())?));
        Ok(returned.is_done())
    })?;
    let by = means.name();
    let detail = format!("{mib} MiB freed, requested at once, until 90 % are returned; aim: at most 1 s; by {by}");
    Ok(vec![
        freed.measured("freed_to_host_asked_ms", ASKED, detail),
        taken.measured("reclaim_gib_per_s", &format!("taken from the guest by {by}")),
        returned.measured("return_gib_per_s", &format!("returned to the guest by {by}")),
    ])
}

/// A course recorded from before the memory was taken until after it was freed.
struct Freed {
    recorder: Recorder,
    at: f64,
    mib: u32,
}

impl Freed {
    fn by(guest: &Guest<'_>, mib: u32) -> anyhow::Result<Self> {
        let mut recorder = Recorder::new(EVERY);
        let at = fill(&[guest.socket()?], mib, || recorder.look([&guest.work.running]))?;
        Ok(Self { at: recorder.at(at), recorder, mib })
    }

    fn returned(&self) -> Option<f64> {
        self.recorder.course.returned_after(self.at, f64::from(self.mib) * f64::from(1 << 20))
    }

    /// If the memory does not return, the value is the longest time that was waited, and the detail says so.
    fn measured(self, metric: &str, limit: Duration, detail: String) -> Measurement {
        let (seconds, detail) = match self.returned() {
            Some(seconds) => (seconds, detail),
            None => (limit.as_secs_f64(), format!("{detail}; not within {} s", limit.as_secs())),
        };
        let measurement = Measurement::less(metric, Unit::Milliseconds, seconds * 1e3).with(detail);
        Measurement { series: self.recorder.course.points, ..measurement }
    }
}

/// A transfer of memory between host and guest, from the moment of the request.
struct Transfer {
    mib: u32,
    began: Instant,
    moved: u32,
    after: Duration,
}

impl Transfer {
    fn begin(mib: u32) -> Self {
        Self { mib, began: Instant::now(), moved: 0, after: Duration::ZERO }
    }

    /// Records that this much has been transferred. Only the time until nearly all has been counts.
    fn note(&mut self, moved: u32) {
        if !self.is_done() || self.after.is_zero() {
            (self.moved, self.after) = (moved, self.began.elapsed());
        }
    }

    fn is_done(&self) -> bool {
        f64::from(self.moved) >= f64::from(self.mib) * NEARLY
    }

    fn measured(&self, metric: &str, what: &str) -> Measurement {
        let rate = f64::from(self.moved) / 1024.0 / self.after.as_secs_f64().max(f64::MIN_POSITIVE);
        let left = if self.is_done() { "" } else { "; the rest not within 20 s" };
        let detail = format!("{} of {} MiB {what}{left}", self.moved, self.mib);
        Measurement::more(metric, Unit::GibPerSecond, rate).with(detail)
    }
}

/// Polls `done` until it returns true or the time is over, as long as all processes live.
fn watch(
    running: &mut Running,
    limit: Duration,
    mut done: impl FnMut(&Running) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let began = Instant::now();
    while !done(running)? && began.elapsed() < limit {
        running.processes.iter_mut().try_for_each(Process::check)?;
        thread::sleep(ASK);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::memory::course::Course;

    fn freed(left: f64) -> Freed {
        let mut recorder = Recorder::new(EVERY);
        let mib = f64::from(1 << 20);
        recorder.course = Course { points: vec![(0.0, 300.0 * mib), (1.0, 300.0 * mib), (1.5, left * mib)] };
        Freed { recorder, at: 1.0, mib: 200 }
    }

    #[test]
    fn memory_that_never_returns_is_marked() {
        for (left, value, tail) in [(110.0, 500.0, "x"), (290.0, 40_000.0, "x; not within 40 s")] {
            let found = freed(left).measured("freed_to_host_ms", UNASKED, "x".into());
            assert_eq!((found.value, found.detail.as_str(), found.series.len()), (value, tail, 3));
        }
    }

    #[test]
    fn a_rate_is_over_the_time_until_nearly_all_has_moved() {
        let mut transfer = Transfer::begin(1024);
        transfer.note(512);
        assert!(!transfer.is_done());
        assert!(transfer.measured("r", "taken").detail.starts_with("512 of 1024 MiB taken; the rest not within"));
        transfer.began -= Duration::from_secs(2);
        transfer.note(922);
        let after = transfer.after;
        transfer.note(1024);
        assert!(transfer.is_done() && (transfer.moved, transfer.after) == (922, after));
        let measured = transfer.measured("r", "taken");
        assert!((0.3..=0.4503).contains(&measured.value), "{measured:?}");
        assert_eq!(measured.detail, "922 of 1024 MiB taken");
    }

    #[test]
    fn nothing_to_move_is_no_rate() {
        let mut transfer = Transfer::begin(0);
        transfer.note(0);
        assert!(transfer.is_done());
        assert_eq!(transfer.measured("r", "x").value, 0.0);
    }
}
