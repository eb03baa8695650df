//! The benches. A [`Bench`] takes a subject and returns one sample of each of its metrics.

mod block;
mod boot;
mod boot_at_once;
mod devcontainer;
mod fio;
mod footprint;
mod fs;
mod memory;
mod net;
mod vsock;
mod work;

use crate::lab::Lab;
use crate::result::{Better, Unit};
use crate::scale::{Scale, Size};
use crate::subject::Subject;

/// One value of one run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Measurement {
    /// The metric's name without the bench.
    pub metric: String,
    pub unit: Unit,
    /// Which direction is better.
    pub better: Better,
    pub value: f64,
    /// What exactly was done.
    pub detail: String,
    /// Its course over time, if it has one: seconds and value.
    pub series: Vec<(f64, f64)>,
}

impl Measurement {
    /// A value of which less is better.
    pub(crate) fn less(metric: impl Into<String>, unit: Unit, value: f64) -> Self {
        let metric = metric.into();
        Self { metric, unit, better: Better::Lower, value, detail: String::new(), series: Vec::new() }
    }

    /// A value of which more is better.
    pub(crate) fn more(metric: impl Into<String>, unit: Unit, value: f64) -> Self {
        Self { better: Better::Higher, ..Self::less(metric, unit, value) }
    }

    /// A count, of which less is better.
    pub(crate) fn count(metric: impl Into<String>, value: u64) -> Self {
        Self::less(metric, Unit::Count, value as f64)
    }

    /// A number of bytes, of which less is better.
    pub(crate) fn bytes(metric: impl Into<String>, value: u64) -> Self {
        Self::less(metric, Unit::Bytes, value as f64)
    }

    /// Adds what exactly was done.
    pub(crate) fn with(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }
}

/// The result of one run of one subject.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sampled {
    /// How the subject was started.
    pub setup: String,
    /// One sample of each metric.
    pub measurements: Vec<Measurement>,
}

pub(crate) trait Bench {
    /// Its name in results and on the command line.
    fn name(&self) -> &'static str;

    /// How many samples are kept.
    fn kept(&self, scale: &Scale) -> usize {
        scale.long_rounds
    }

    /// Whether the first round's samples are dropped.
    fn warms_up(&self, size: Size) -> bool {
        size.warms_up()
    }

    /// Whether a subject can take part.
    fn takes(&self, _subject: &str, _size: Size) -> bool {
        true
    }

    /// Takes one sample of one subject.
    ///
    /// # Errors
    /// The subject does not start, or does not finish in time.
    fn run(&self, lab: &Lab, subject: &dyn Subject) -> anyhow::Result<Sampled>;

    /// Runs one round: a sample of each subject, one after the other or all together. An emulator may lose an
    /// interrupt, so a subject that fails is run once more.
    fn round(&self, lab: &Lab, subjects: &[&dyn Subject]) -> Vec<anyhow::Result<Sampled>> {
        let again = |subject: &dyn Subject, why: anyhow::Error| {
            eprintln!("  {}, once more: {why:#}", subject.name());
            self.run(lab, subject)
        };
        subjects.iter().map(|subject| self.run(lab, *subject).or_else(|why| again(*subject, why))).collect()
    }
}

/// All benches, in the order they run. The gate runs those whose counts repeat.
pub(crate) fn all(size: Size) -> Vec<Box<dyn Bench>> {
    let mut benches: Vec<Box<dyn Bench>> = vec![Box::new(boot::Boot), Box::new(footprint::Footprint), Box::new(fs::Fs)];
    if size != Size::Gate {
        benches.push(Box::new(block::Block));
        benches.push(Box::new(vsock::Vsock));
        benches.push(Box::new(net::Net));
        benches.push(Box::new(boot_at_once::BootAtOnce));
        benches.push(Box::new(devcontainer::Devcontainer));
        benches.push(Box::new(memory::Memory)); // the longest comes last: time may run out during it
    }
    benches
}
