//! Memory that comes back: after a program that took it has ended, during a build and its cleaning up, and by the balloon.

use std::time::{Duration, Instant};

use anyhow::Context;

use super::work::{Report, Work};
use super::{Bench, Measurement, Sampled};
use crate::count::memory::resident;
use crate::guest;
use crate::lab::Lab;
use crate::result::Unit;
use crate::scale::Size;
use crate::subject::{Machine, Running, Subject};

/// How long the guest waits for its memory to be returned, in seconds.
const SETTLE_S: u64 = 12;
/// Memory counts as returned when no more than this part of what was taken is still held.
const LEFT: f64 = 0.1;
const EVERY: Duration = Duration::from_millis(200);
/// How often the VMM is asked how far it is.
const ASK: Duration = Duration::from_millis(10);
/// What the balloon leaves to the guest, in MiB.
const KEEP_MIB: u32 = 192;

/// What virtio-mem plugs and unplugs where there is one, in MiB.
const HOTPLUG_MIB: u32 = 256;

/// The bench.
pub struct Memory;

impl Bench for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn run(&self, lab: &Lab, subject: &dyn Subject) -> anyhow::Result<Sampled> {
        let folder = lab.folder()?;
        let builds = lab.size == Size::Full;
        let mut variables = vec![
            ("FILL_MIB", lab.scale.fill_mib.to_string()),
            ("SETTLE_S", SETTLE_S.to_string()),
            ("HELPER", "/dev/vdc".to_owned()),
        ];
        let mut extra = vec![lab.helper_disk()];
        if builds {
            variables.push(("TOOLS", "/dev/vdd".to_owned()));
            extra.push(lab.tools_disk()?);
        }
        let own = [lab.data_disk(folder.path())?, lab.job_disk(folder.path(), &variables, guest::MEMORY)?];
        let disks = own.into_iter().chain(extra).collect();
        let mut work = Work::start(
            lab,
            subject,
            &Machine { disks, hotplug_mib: HOTPLUG_MIB, ..lab.machine(guest::CMDLINE) },
            folder.path(),
        )?;
        work.until_ready()?;
        let (course, report) = watch(&mut work)?;

        let mut measurements = course.measurements(&report, lab.scale.fill_mib);
        measurements.extend(balloon(&mut work.running, lab.scale.memory_mib - KEEP_MIB, lab.scale.deadline)?);
        if work.running.control.plugged_mib()?.is_some() {
            measurements.extend(virtio_mem(&mut work.running, HOTPLUG_MIB, lab.scale.deadline)?);
        }
        Ok(Sampled { setup: work.running.setup.clone(), measurements })
    }
}

/// Resident memory of the VMM over time, and when cases ended.
#[derive(Default)]
struct Course {
    points: Vec<(f64, f64)>,
    ends: Vec<(String, f64)>,
}

fn watch(work: &mut Work<'_>) -> anyhow::Result<(Course, Report)> {
    let mut course = Course::default();
    let began = Instant::now();
    let mut next = Duration::ZERO;
    let report = work.follow(|running, case| {
        let now = began.elapsed();
        if let Some(case) = case {
            course.ends.push((case.to_owned(), now.as_secs_f64()));
        }
        if now >= next {
            next = now + EVERY;
            let vmm = running.pids().first().copied().context("no process")?;
            course.points.push((now.as_secs_f64(), resident(vmm)? as f64));
        }
        Ok(())
    })?;
    Ok((course, report))
}

impl Course {
    fn end_of(&self, case: &str) -> Option<f64> {
        self.ends.iter().find(|(name, _)| name == case).map(|(_, at)| *at)
    }

    fn between(&self, from: f64, to: f64) -> impl Iterator<Item = &(f64, f64)> {
        self.points.iter().filter(move |(at, _)| (from..=to).contains(at))
    }

    /// Time from a case's end until nearly all that it had taken is returned; nothing if that does not come about.
    fn returned_after(&self, case: &str) -> Option<f64> {
        let end = self.end_of(case)?;
        let before = self.points.first()?.1;
        let peak = self.between(0.0, end).map(|(_, bytes)| *bytes).fold(before, f64::max);
        let enough = before + (peak - before) * LEFT;
        self.points.iter().find(|(at, bytes)| *at >= end && *bytes <= enough).map(|(at, _)| at - end)
    }

    /// GiB held times seconds.
    fn gib_seconds(&self, from: f64, to: f64) -> f64 {
        let points: Vec<_> = self.between(from, to).collect();
        let area = |pair: &[&(f64, f64)]| (pair[1].0 - pair[0].0) * f64::midpoint(pair[0].1, pair[1].1);
        points.windows(2).map(area).sum::<f64>() / f64::from(1 << 30)
    }

    fn measurements(self, report: &Report, fill_mib: u32) -> Vec<Measurement> {
        let taken = format!("{fill_mib} MiB taken and given back");
        let settled = SETTLE_S as f64;
        let mut all = Vec::new();
        if let Some(end) = self.end_of("fill") {
            let left = self.between(end, end + settled).last().map_or(0.0, |(_, bytes)| *bytes);
            let after = format!("{taken}, {SETTLE_S} s later");
            all.push(Measurement::less("after_fill_resident_bytes", Unit::Bytes, left).with(after));
            let held = self.gib_seconds(0.0, end + settled);
            all.push(Measurement::less("fill_gib_seconds", Unit::GibSeconds, held).with(taken.clone()));
        }
        // Who never gives it back has the longest time that was waited, and says so.
        let (seconds, detail) = match self.returned_after("fill") {
            Some(seconds) => (seconds, taken),
            None => (settled, format!("{taken}; not returned when the guest went on after {SETTLE_S} s")),
        };
        all.push(Measurement::less("return_seconds", Unit::Seconds, seconds).with(detail));
        if let (Some(build), Some(clean)) =
            (report.cases.iter().find(|case| case.name == "build"), self.end_of("clean"))
        {
            let from = self.end_of("build").unwrap_or(clean) - build.seconds;
            let held = self.gib_seconds(from, clean + settled);
            let detail = format!("a C build, make clean, {SETTLE_S} s more");
            all.push(Measurement::less("build_gib_seconds", Unit::GibSeconds, held).with(detail));
        }
        if let Some(first) = all.first_mut() {
            first.series = self.points;
        }
        all
    }
}

fn balloon(running: &mut Running, mib: u32, deadline: Duration) -> anyhow::Result<[Measurement; 2]> {
    let mut rate = |target: u32| {
        let began = Instant::now();
        running.control.set_balloon(target)?;
        running.wait("the balloon", deadline, ASK, |running| {
            Ok((running.control.balloon_mib()? == target).then_some(()))
        })?;
        anyhow::Ok(rate_of(mib, began))
    };
    let (inflate, deflate) = (rate(mib)?, rate(0)?);
    let detail = format!("{mib} MiB");
    Ok([
        Measurement::more("balloon_inflate_rate", Unit::BytesPerSecond, inflate).with(detail.clone()),
        Measurement::more("balloon_deflate_rate", Unit::BytesPerSecond, deflate).with(detail),
    ])
}

/// The other means to the same end, where a peer has it.
fn virtio_mem(running: &mut Running, mib: u32, deadline: Duration) -> anyhow::Result<[Measurement; 2]> {
    let mut rate = |target: u32| {
        let began = Instant::now();
        running.control.plug(target)?;
        running.wait("virtio-mem", deadline, ASK, |running| {
            Ok((running.control.plugged_mib()? == Some(target)).then_some(()))
        })?;
        anyhow::Ok(rate_of(mib, began))
    };
    let (plug, unplug) = (rate(mib)?, rate(0)?);
    let detail = format!("{mib} MiB by virtio-mem");
    Ok([
        Measurement::more("virtio_mem_plug_rate", Unit::BytesPerSecond, plug).with(detail.clone()),
        Measurement::more("virtio_mem_unplug_rate", Unit::BytesPerSecond, unplug).with(detail),
    ])
}

fn rate_of(mib: u32, began: Instant) -> f64 {
    f64::from(mib) * f64::from(1 << 20) / began.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: f64 = (1 << 30) as f64;

    fn course(tail: f64) -> Course {
        Course {
            points: vec![(0.0, GIB), (1.0, 3.0 * GIB), (2.0, 3.0 * GIB), (4.0, tail * GIB), (30.0, tail * GIB)],
            ends: vec![("fill".into(), 2.0)],
        }
    }

    #[test]
    fn memory_is_back_when_little_is_left() {
        assert_eq!(course(1.1).returned_after("fill"), Some(2.0));
        assert_eq!(course(1.9).returned_after("fill"), None);
        assert_eq!(course(1.0).returned_after("build"), None);
    }

    #[test]
    fn held_memory_is_an_area() {
        let close = |value: f64, expected: f64| assert!((value - expected).abs() < 1e-9, "{value} {expected}");
        close(course(1.0).gib_seconds(0.0, 2.0), 5.0);
        close(course(1.0).gib_seconds(0.0, 4.0), 9.0);
        close(course(1.0).gib_seconds(5.0, 6.0), 0.0);
    }

    #[test]
    fn what_is_never_returned_says_so() {
        let measurements = course(2.9).measurements(&Report::default(), 256);
        let found = measurements.iter().find(|measurement| measurement.metric == "return_seconds").unwrap();
        assert!(found.value == SETTLE_S as f64 && found.detail.contains("not returned"), "{found:?}");
        assert!(!measurements[0].series.is_empty());
    }
}
