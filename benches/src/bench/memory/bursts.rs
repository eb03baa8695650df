//! Three machines of one host that need much memory for a moment, one after the other and at the same time.

use std::thread;
use std::time::{Duration, Instant};

use super::course::Recorder;
use super::guest::{Guest, Task, fill};
use crate::bench::Measurement;
use crate::lab::Lab;
use crate::subject::{GuestSocket, Running, Subject};

const MACHINES: usize = 3;
const EVERY: Duration = Duration::from_millis(100);
/// The time from the end of one burst to the next: as long as freed memory may take to return to the host without a
/// request.
const GAP: Duration = Duration::from_secs(5);

/// Runs the bursts.
///
/// # Errors
/// A machine does not start or ends, or a guest cannot be reached.
pub(super) fn run(lab: &Lab, subject: &dyn Subject) -> anyhow::Result<[Measurement; 2]> {
    let task = Task { builds: false, gives_back: true };
    let mut guests = (0..MACHINES).map(|_| Guest::start(lab, subject, task)).collect::<anyhow::Result<Vec<_>>>()?;
    guests.iter_mut().try_for_each(|guest| guest.work.until_ready())?;
    let machines: Vec<&Running> = guests.iter().map(|guest| &guest.work.running).collect();
    let sockets = guests.iter().map(Guest::socket).collect::<anyhow::Result<Vec<_>>>()?;
    let mib = lab.scale.fill_mib;
    // First reclaim the memory that the boots have freed.
    rest(&mut Recorder::new(EVERY), &machines)?;
    let one_by_one: Vec<_> = sockets.chunks(1).collect();
    let offset = bursts(&machines, &one_by_one, mib)?;
    let coinciding = bursts(&machines, &[&sockets], mib)?;
    let all = format!("all processes of {MACHINES} machines that take {mib} MiB each");
    Ok([
        measured("bursts_offset_peak_bytes", offset, format!("{all}, {} s after one another", GAP.as_secs())),
        measured("bursts_coinciding_peak_bytes", coinciding, format!("{all} at the same time")),
    ])
}

/// Runs each group of guests after the previous group.
fn bursts(machines: &[&Running], groups: &[&[GuestSocket]], mib: u32) -> anyhow::Result<Recorder> {
    let mut recorder = Recorder::new(EVERY);
    for group in groups {
        fill(group, mib, || recorder.look(machines.iter().copied()))?;
        rest(&mut recorder, machines)?;
    }
    Ok(recorder)
}

fn rest(recorder: &mut Recorder, machines: &[&Running]) -> anyhow::Result<()> {
    let began = Instant::now();
    while began.elapsed() < GAP {
        recorder.look(machines.iter().copied())?;
        thread::sleep(EVERY);
    }
    Ok(())
}

fn measured(metric: &str, recorder: Recorder, detail: String) -> Measurement {
    let peak = Measurement::bytes(metric, recorder.course.peak() as u64).with(detail);
    Measurement { series: recorder.course.points, ..peak }
}
