//! A compile, its cleanup, and then an idle machine. It measures the host memory that the machine holds meanwhile, and
//! how much reclaim slows the build down.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::course::Recorder;
use super::guest::{Guest, Task};
use crate::bench::Measurement;
use crate::bench::work::{Case, Report};
use crate::lab::Lab;
use crate::process::Process;
use crate::project;
use crate::result::Unit;
use crate::scale::Size;
use crate::subject::Subject;

/// Poll interval of resident memory.
const EVERY: Duration = Duration::from_millis(250);

/// A finished build and its machine, which still runs.
pub(super) struct Built<'a> {
    pub guest: Guest<'a>,
    pub build: Case,
    pub measurements: Vec<Measurement>,
}

/// Builds the project, then leaves the machine idle.
///
/// # Errors
/// The machine does not start, or the build fails or takes too long.
pub(super) fn run<'a>(lab: &'a Lab, subject: &dyn Subject) -> anyhow::Result<Built<'a>> {
    let mut guest = Guest::start(lab, subject, Task { builds: true, gives_back: true })?;
    let mut recorder = Recorder::new(EVERY);
    let mut built_at = 0.0;
    let report = guest.work.follow(|running, case| {
        if case == Some("build") {
            built_at = recorder.seconds();
        }
        recorder.look([&*running])
    })?;
    idle(&mut guest, &mut recorder, lab)?;

    let build = case(report)?;
    let (project, idle) = (project(lab.size), lab.scale.idle.as_secs());
    let held = recorder.course.gib_seconds(built_at - build.seconds, recorder.seconds());
    let rested = rested(&guest)?;
    let course = format!("{project}, its removal and {idle} s idle{rested}; aim: at most 0.8 of the best QEMU's");
    let mut measurements = vec![
        Measurement::less("build_resident_gib_s", Unit::GibSeconds, held).with(course),
        Measurement::less("idle_resident_bytes", Unit::Bytes, recorder.course.last())
            .with(format!("{idle} s after {project} and its removal{rested}; aim: at most a quarter of QEMU's")),
        Measurement::less("build_seconds", Unit::Seconds, build.seconds)
            .with(format!("{project}, by the guest's clock")),
        Measurement::less("build_cpu_seconds", Unit::Seconds, cpu_seconds(&build))
            .with("processors at work for guest and VMM during the build"),
    ];
    measurements[0].series = recorder.course.points;
    Ok(Built { guest, build, measurements })
}

/// Work of the build, divided by the work in the same guest without reclaim. In the quick size there is time for this
/// only if the guest itself reclaims memory.
///
/// # Errors
/// See [`run`].
pub(super) fn compared(lab: &Lab, subject: &dyn Subject, build: &Case) -> anyhow::Result<Option<Measurement>> {
    if lab.size != Size::Full && !subject.reclaims() {
        return Ok(None);
    }
    let mut guest = Guest::start(lab, subject, Task { builds: true, gives_back: false })?;
    let report = guest.work.follow(|_, _| Ok(())).context("without reclaim")?;
    Ok(Some(work(build, &case(report)?)))
}

fn idle(guest: &mut Guest<'_>, recorder: &mut Recorder, lab: &Lab) -> anyhow::Result<()> {
    let began = Instant::now();
    while began.elapsed() < lab.scale.idle {
        recorder.look([&guest.work.running])?;
        if let Some(kept) = &mut guest.kept {
            kept.look(u64::from(lab.scale.memory_mib) << 20)?;
        }
        guest.work.running.processes.iter_mut().try_for_each(Process::check)?;
        thread::sleep(EVERY);
    }
    Ok(())
}

/// Describes how much the host has swapped out.
fn rested(guest: &Guest<'_>) -> anyhow::Result<String> {
    let Some(kept) = &guest.kept else { return Ok(String::new()) };
    let mib = kept.swapped()? >> 20;
    Ok(format!(", {mib} MiB swapped out as by the runner of an overcommitted host"))
}

fn work(with: &Case, without: &Case) -> Measurement {
    let ratio = cpu_seconds(with) / cpu_seconds(without).max(f64::MIN_POSITIVE);
    let detail = format!(
        "processor time of the build over that of the same guest without reclaim ({:.2} s); aim: at most 1.01",
        cpu_seconds(without)
    );
    Measurement::less("build_work", Unit::Ratio, ratio).with(detail)
}

fn case(report: Report) -> anyhow::Result<Case> {
    report.cases.into_iter().find(|case| case.name == "build").context("the guest has no result of the build")
}

fn cpu_seconds(case: &Case) -> f64 {
    case.counts.cpu_ms as f64 / 1e3
}

fn project(size: Size) -> String {
    match size {
        Size::Full => "a build of Lua".to_owned(),
        Size::Gate | Size::Quick => format!("a build of {} small C files", project::FILES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::count::Snapshot;

    #[test]
    fn work_is_a_ratio_of_processor_times() {
        let case =
            |cpu_ms| Case { name: "build".into(), seconds: 9.0, counts: Snapshot { cpu_ms, ..Snapshot::default() } };
        let work = work(&case(40_400), &case(40_000));
        assert!((work.value - 1.01).abs() < 1e-9 && work.detail.contains("(40.00 s)"), "{work:?}");
        assert_eq!(super::case(Report { cases: vec![case(1)], values: Vec::new() }).unwrap().counts.cpu_ms, 1);
        assert!(super::case(Report::default()).is_err());
    }
}
