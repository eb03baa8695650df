//! The cost of an idle machine. The machines of all subjects are idle at the same time, so that a minute is measured
//! once.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::boot_at_once::{self, Up};
use super::{Bench, Measurement, Sampled};
use crate::count::{memory, open_descriptors};
use crate::lab::Lab;
use crate::scale::{Scale, Size};
use crate::statistics;
use crate::subject::Subject;

const EVERY: Duration = Duration::from_secs(2);

pub(super) struct Footprint;

impl Bench for Footprint {
    fn name(&self) -> &'static str {
        "footprint"
    }

    fn kept(&self, scale: &Scale) -> usize {
        scale.long_rounds.div_ceil(2)
    }

    fn warms_up(&self, _size: Size) -> bool {
        false
    }

    fn run(&self, lab: &Lab, subject: &dyn Subject) -> anyhow::Result<Sampled> {
        self.round(lab, &[subject]).pop().context("one subject, one result")?
    }

    fn round(&self, lab: &Lab, subjects: &[&dyn Subject]) -> Vec<anyhow::Result<Sampled>> {
        let count = lab.scale.idle_machines;
        let start = |subject: &dyn Subject| boot_at_once::start(lab, subject, count);
        let machines: Vec<_> = subjects.iter().map(|subject| start(*subject).or_else(|_| start(*subject))).collect();
        let curves = idle(&machines, lab.scale.idle);
        let results = machines.into_iter().zip(curves);
        results.map(|(machines, curve)| measure(&machines?, curve, lab.guest_bytes())).collect()
    }
}

/// Waits, and returns the resident memory of each subject's first machine over that time.
fn idle(machines: &[anyhow::Result<Vec<Up>>], time: Duration) -> Vec<Vec<(f64, f64)>> {
    let mut curves = vec![Vec::new(); machines.len()];
    let began = Instant::now();
    while began.elapsed() < time {
        for (machines, curve) in machines.iter().zip(&mut curves) {
            let first = machines.as_ref().ok().and_then(|machines| machines.first());
            let resident = first.map(|up| up.running.pids().into_iter().map(memory::resident).sum());
            if let Some(Ok::<u64, anyhow::Error>(resident)) = resident {
                curve.push((began.elapsed().as_secs_f64(), resident as f64));
            }
        }
        thread::sleep(EVERY.min(time.saturating_sub(began.elapsed())));
    }
    curves
}

fn measure(machines: &[Up], curve: Vec<(f64, f64)>, guest_bytes: u64) -> anyhow::Result<Sampled> {
    let memories =
        machines.iter().map(|up| memory::of(&up.running, guest_bytes)).collect::<anyhow::Result<Vec<_>>>()?;
    let middle = |figure: fn(&memory::Memory) -> u64| {
        let figures: Vec<f64> = memories.iter().map(|memory| figure(memory) as f64).collect();
        statistics::median(&figures).unwrap_or_default() as u64
    };
    let first = &machines.first().context("no machine")?.running;
    let descriptors = first.pids().into_iter().map(open_descriptors).sum();
    let idle = Measurement {
        series: curve,
        ..Measurement::bytes("idle_resident_bytes", middle(|memory| memory.resident))
            .with("all pages, including the shared root's")
    };
    let measurements = vec![
        Measurement::bytes("vmm_private_bytes", middle(|memory| memory.own_private))
            .with("without guest memory and the root image"),
        idle,
        Measurement::bytes("idle_guest_bytes", middle(|memory| memory.guest_resident))
            .with("guest memory that the host holds"),
        Measurement::bytes("idle_proportional_bytes", middle(|memory| memory.proportional)),
        Measurement::bytes("marginal_bytes", middle(|memory| memory.private))
            .with(format!("private pages of one of {}: the cost of one more machine", machines.len())),
        Measurement::count("descriptors", descriptors),
    ];
    Ok(Sampled { setup: first.setup.clone(), measurements })
}
