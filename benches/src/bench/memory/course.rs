//! Resident memory over time: how it is recorded, and pure functions that evaluate it.

use std::time::{Duration, Instant};

use crate::count::memory;
use crate::subject::Running;

/// The share of freed memory that must return to the host. The rest may be scattered over pages that are still in use.
const RETURNED: f64 = 0.9;

/// Resident memory of a machine, in bytes: the sum of its processes.
///
/// # Errors
/// A process has ended.
pub(super) fn resident(running: &Running) -> anyhow::Result<u64> {
    running.pids().into_iter().map(memory::resident).sum()
}

/// Records a course.
pub(super) struct Recorder {
    began: Instant,
    every: Duration,
    next: Duration,
    /// The points until now.
    pub course: Course,
}

impl Recorder {
    /// Creates a recorder that takes a point every `every`, if it is called often enough.
    pub(super) fn new(every: Duration) -> Self {
        Self { began: Instant::now(), every, next: Duration::ZERO, course: Course::default() }
    }

    /// Seconds since the recorder was created.
    pub(super) fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// Converts a moment to seconds since the recorder was created.
    pub(super) fn at(&self, moment: Instant) -> f64 {
        moment.saturating_duration_since(self.began).as_secs_f64()
    }

    /// Adds a point, the sum of the machines, if it is time for one.
    ///
    /// # Errors
    /// A process has ended.
    pub(super) fn look<'a>(&mut self, machines: impl IntoIterator<Item = &'a Running>) -> anyhow::Result<()> {
        let now = self.began.elapsed();
        if now >= self.next {
            self.next = now + self.every;
            let bytes: u64 = machines.into_iter().map(resident).sum::<anyhow::Result<u64>>()?;
            self.course.points.push((now.as_secs_f64(), bytes as f64));
        }
        Ok(())
    }
}

/// Points of seconds and bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Course {
    /// The points, in order of time.
    pub points: Vec<(f64, f64)>,
}

impl Course {
    fn between(&self, from: f64, to: f64) -> impl Iterator<Item = &(f64, f64)> {
        self.points.iter().filter(move |(at, _)| (from..=to).contains(at))
    }

    /// The maximum.
    pub(super) fn peak(&self) -> f64 {
        self.points.iter().map(|(_, bytes)| *bytes).fold(0.0, f64::max)
    }

    pub(super) fn last(&self) -> f64 {
        self.points.last().map_or(0.0, |(_, bytes)| *bytes)
    }

    /// The integral: GiB times seconds.
    pub(super) fn gib_seconds(&self, from: f64, to: f64) -> f64 {
        let points: Vec<_> = self.between(from, to).collect();
        let area = |pair: &[&(f64, f64)]| (pair[1].0 - pair[0].0) * f64::midpoint(pair[0].1, pair[1].1);
        points.windows(2).map(area).sum::<f64>() / f64::from(1 << 30)
    }

    /// Seconds from `freed_at`, when a program of the guest freed `bytes`, until resident memory is nearly that much
    /// below its earlier maximum. `None` if that does not happen.
    pub(super) fn returned_after(&self, freed_at: f64, bytes: f64) -> Option<f64> {
        let peak = self.between(0.0, freed_at).map(|(_, bytes)| *bytes).fold(0.0, f64::max);
        let enough = peak - bytes * RETURNED;
        self.points.iter().find(|(at, left)| *at >= freed_at && *left <= enough).map(|(at, _)| at - freed_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const GIB: f64 = (1 << 30) as f64;

    fn course(gib: &[(f64, f64)]) -> Course {
        Course { points: gib.iter().map(|(at, gib)| (*at, gib * GIB)).collect() }
    }

    #[test]
    fn memory_is_back_when_little_of_it_is_left() {
        for (tail, expected) in [(1.1, Some(2.0)), (1.2, Some(2.0)), (1.3, None), (3.0, None)] {
            let course = course(&[(0.0, 1.0), (1.0, 3.0), (2.0, 3.0), (4.0, tail), (30.0, tail)]);
            assert_eq!(course.returned_after(2.0, 2.0 * GIB), expected, "{tail}");
        }
    }

    #[test]
    fn memory_that_never_returned_does_not_count_as_returned() {
        let course = course(&[(0.0, 3.0), (1.0, 3.0), (9.0, 3.0)]);
        assert_eq!(course.returned_after(1.0, 2.0 * GIB), None);
    }

    #[test]
    fn held_memory_is_an_area() {
        let course = course(&[(0.0, 1.0), (1.0, 3.0), (2.0, 3.0), (4.0, 1.0), (30.0, 1.0)]);
        for (from, to, expected) in [(0.0, 2.0, 5.0), (0.0, 4.0, 9.0), (5.0, 6.0, 0.0)] {
            assert!((course.gib_seconds(from, to) - expected).abs() < 1e-9, "{from} {to}");
        }
        assert_eq!((course.peak(), course.last()), (3.0 * GIB, GIB));
        assert_eq!((Course::default().peak(), Course::default().last()), (0.0, 0.0));
    }

    #[test]
    fn a_recorder_keeps_its_pace() {
        let mut recorder = Recorder::new(Duration::from_secs(3600));
        for _ in 0..3 {
            recorder.look([]).unwrap();
        }
        assert_eq!(recorder.course.points.len(), 1);
        assert!(recorder.at(Instant::now()) <= recorder.seconds());
    }

    proptest! {
        #[test]
        fn an_area_is_no_more_than_its_peak_all_the_time(bytes in vec(0.0f64..1e12, 2..50)) {
            let course = Course { points: bytes.iter().enumerate().map(|(at, bytes)| (at as f64, *bytes)).collect() };
            let seconds = (bytes.len() - 1) as f64;
            let area = course.gib_seconds(0.0, seconds);
            prop_assert!(area >= 0.0 && area <= course.peak() / GIB * seconds * (1.0 + 1e-9));
        }
    }
}
