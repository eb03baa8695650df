//! A run: carries out the plan, and writes each round's samples at once.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;

use crate::bench::{self, Bench, Measurement, Sampled};
use crate::host::{self, Host};
use crate::lab::{self, Lab};
use crate::plan::{self, Step, Wanted};
use crate::result::{self, Better, Key, Record, Unit, Writer};
use crate::scale::Size;
use crate::subject::{Programs, Subject};

/// The file of results, in the run's folder.
pub(crate) const RESULTS: &str = "results.jsonl";
/// The metric that is written last of a subject: if it exists, the bench is complete.
const LAST_METRIC: &str = "harness_seconds";
/// The metric that records why a subject has no others.
const FAILURE: &str = "failure";

/// The arguments of `run`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only these benches
    #[arg(long, value_delimiter = ',', value_name = "BENCH,…")]
    only: Vec<String>,
    /// Only these subjects
    #[arg(long, value_delimiter = ',', value_name = "SUBJECT,…")]
    subjects: Vec<String>,
    /// The size of the run
    #[arg(long, value_enum, default_value_t)]
    size: Size,
    /// A peer's program: qemu, virtiofsd, firecracker or cloud-hypervisor; repeatable
    #[arg(long = "peer", value_name = "NAME=PATH")]
    peers: Vec<String>,
    /// The folder for results
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    out: PathBuf,
    /// Continue with existing results: no sample is taken twice
    #[arg(long)]
    resume: bool,
    /// Begin no round after this many minutes (24 by default for the quick size, else unlimited)
    #[arg(long, value_name = "MINUTES")]
    minutes: Option<u64>,
    #[command(flatten)]
    places: lab::Places,
    /// The commit garret was built from
    #[arg(long, value_name = "HASH", default_value = "unknown", env = "GARRET_COMMIT")]
    commit: String,
    /// Set if this host's emulator counts instructions
    #[arg(long)]
    icount: bool,
}

/// How long the quick size may take before the last round begins.
const QUICK_MINUTES: u64 = 24;

/// Runs the requested benches.
///
/// # Errors
/// This host cannot run any bench, or the results cannot be written. A subject's failure is a result.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let programs = Programs::new(&options.places.lib, &options.peers)?;
    let subjects = chosen_subjects(programs.subjects(), &options.subjects)?;
    let benches = chosen_benches(bench::all(options.size), &options.only)?;
    std::fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    let results = options.out.join(RESULTS);
    let records = if options.resume { resumed(&results)? } else { HashMap::new() };
    let lab = Lab::open(options.size, &options.places, options.icount)?;
    let garret = options.places.lib.join("garret-vmm");
    let versioned = [vec![("garret", garret.as_path())], programs.versioned()].concat();
    let run = Run {
        host: host::look(&options.commit, options.icount, &versioned),
        writer: Writer::open(&results, options.resume)?,
        records,
        failed: HashSet::new(),
        size: options.size,
    };
    run.carry_out(&lab, &benches, &subjects, time_limit(options))?;
    eprintln!("results: {}", results.display());
    Ok(())
}

fn time_limit(options: &Options) -> Option<Duration> {
    let quick = (options.size == Size::Quick).then_some(QUICK_MINUTES);
    options.minutes.or(quick).map(|minutes| Duration::from_secs(minutes * 60))
}

fn chosen_subjects(all: Vec<Box<dyn Subject>>, only: &[String]) -> anyhow::Result<Vec<Box<dyn Subject>>> {
    let names: Vec<_> = all.iter().map(|subject| subject.name()).collect();
    check(only, &names, "subject")?;
    Ok(all.into_iter().filter(|subject| only.is_empty() || only.iter().any(|name| name == subject.name())).collect())
}

fn chosen_benches(all: Vec<Box<dyn Bench>>, only: &[String]) -> anyhow::Result<Vec<Box<dyn Bench>>> {
    let names: Vec<_> = all.iter().map(|bench| bench.name()).collect();
    check(only, &names, "bench")?;
    Ok(all.into_iter().filter(|bench| only.is_empty() || only.iter().any(|name| name == bench.name())).collect())
}

fn check(wanted: &[String], there: &[&str], what: &str) -> anyhow::Result<()> {
    match wanted.iter().find(|name| !there.contains(&name.as_str())) {
        Some(name) => bail!("there is no {what} {name}; there are {}", there.join(", ")),
        None => Ok(()),
    }
}

/// Reads what an earlier run wrote. Its failures are removed from the file, so that they are run again.
fn resumed(results: &Path) -> anyhow::Result<HashMap<Key, Record>> {
    if !results.exists() {
        return Ok(HashMap::new());
    }
    let mut records = result::read(results)?;
    records.retain(|record| record.error.is_none());
    result::replace(results, &records)?;
    Ok(records.into_iter().map(|record| (record.key(), record)).collect())
}

/// A run in progress.
struct Run {
    host: Host,
    writer: Writer,
    records: HashMap<Key, Record>,
    /// Benches and subjects that have no more rounds.
    failed: HashSet<(String, String)>,
    size: Size,
}

impl Run {
    fn carry_out(
        mut self,
        lab: &Lab,
        benches: &[Box<dyn Bench>],
        subjects: &[Box<dyn Subject>],
        limit: Option<Duration>,
    ) -> anyhow::Result<()> {
        let wanted: Vec<_> = benches.iter().map(|bench| self.wanted(lab, bench.as_ref(), subjects)).collect();
        let steps = plan::steps(&wanted);
        ensure!(!steps.is_empty() || !self.records.is_empty(), "no subject takes part in these benches");
        let began = Instant::now();
        for (number, step) in steps.iter().enumerate() {
            if limit.is_some_and(|limit| began.elapsed() >= limit) {
                eprintln!(
                    "out of time: {} of {} rounds did not run (--minutes, --resume)",
                    steps.len() - number,
                    steps.len()
                );
                break;
            }
            let bench = benches.iter().find(|bench| bench.name() == step.bench).context("a planned bench")?;
            eprintln!("[{}/{}] {}", number + 1, steps.len(), told(step));
            self.round(lab, bench.as_ref(), subjects, step)?;
        }
        Ok(())
    }

    fn round(
        &mut self,
        lab: &Lab,
        bench: &dyn Bench,
        subjects: &[Box<dyn Subject>],
        step: &Step,
    ) -> anyhow::Result<()> {
        let key = |name: &str| (step.bench.to_owned(), name.to_owned());
        let named = step.subjects.iter().filter(|name| !self.failed.contains(&key(name)));
        let taking_part: Vec<&dyn Subject> = named
            .filter_map(|name| subjects.iter().find(|subject| subject.name() == name))
            .map(AsRef::as_ref)
            .collect();
        if taking_part.is_empty() {
            return Ok(());
        }
        lab.tracer.count(self.size.counts(step.round))?;
        let began = Instant::now();
        let results = bench.round(lab, &taking_part);
        let each = began.elapsed().as_secs_f64() / taking_part.len() as f64;
        for (subject, result) in taking_part.iter().zip(results) {
            match result {
                Ok(_) if step.warm_up => {}
                Ok(mut sampled) => {
                    if self.size == Size::Full && lab.tracer.counting() {
                        sampled.measurements.retain(|measurement| !measurement.unit.is_time());
                    }
                    let cost = Measurement::less(LAST_METRIC, Unit::Seconds, each);
                    sampled.measurements.push(cost.with("duration of a round of this bench, with start and stop"));
                    self.keep(step, subject.name(), sampled)?;
                }
                Err(error) => {
                    eprintln!("  {}: {error:#}", subject.name());
                    self.failed.insert(key(subject.name()));
                    let record = self.failure(step, subject.name(), format!("{error:#}"));
                    self.writer.write(&[record])?;
                }
            }
        }
        Ok(())
    }

    fn wanted(&self, lab: &Lab, bench: &dyn Bench, subjects: &[Box<dyn Subject>]) -> Wanted {
        let taking_part = subjects.iter().filter(|subject| takes_part(bench, subject.as_ref(), lab.size));
        let names = taking_part.map(|subject| subject.name());
        Wanted {
            bench: bench.name(),
            subjects: names.map(|name| (name.to_owned(), self.samples(bench.name(), name))).collect(),
            kept: bench.kept(&lab.scale),
            warms_up: bench.warms_up(lab.size),
        }
    }

    fn samples(&self, bench: &str, subject: &str) -> usize {
        let key = (bench.to_owned(), LAST_METRIC.to_owned(), subject.to_owned());
        self.records.get(&key).map_or(0, |record| record.samples.len())
    }

    /// Adds a sample to each metric's record, and appends the records to the results.
    fn keep(&mut self, step: &Step, subject: &str, sampled: Sampled) -> anyhow::Result<()> {
        let mut written = Vec::new();
        for measurement in sampled.measurements {
            let key = (step.bench.to_owned(), measurement.metric.clone(), subject.to_owned());
            let mut record = match self.records.remove(&key) {
                Some(record) => record,
                None => self.empty(step, subject, &measurement),
            };
            record.samples.push(measurement.value);
            record.detail = measurement.detail;
            record.setup = sampled.setup.clone();
            record.series = measurement.series;
            written.push(key.clone());
            self.records.insert(key, record.summarized());
        }
        if step.last {
            let own = self.records.iter_mut().filter(|((bench, _, name), _)| bench == step.bench && name == subject);
            written = own
                .map(|(key, record)| {
                    record.complete = true;
                    key.clone()
                })
                .collect();
            // If a line is torn off the end, it must be the one that marks the bench as complete, so that one comes
            // last.
            written.sort_by_key(|key| (key.1 == LAST_METRIC, key.clone()));
        }
        let records: Vec<_> = written.iter().filter_map(|key| self.records.get(key).cloned()).collect();
        self.writer.write(&records)
    }

    fn empty(&self, step: &Step, subject: &str, measurement: &Measurement) -> Record {
        Record {
            bench: step.bench.to_owned(),
            metric: measurement.metric.clone(),
            subject: subject.to_owned(),
            unit: measurement.unit,
            better: measurement.better,
            median: None,
            low: None,
            high: None,
            samples: Vec::new(),
            complete: false,
            size: self.size,
            detail: String::new(),
            setup: String::new(),
            absolute_time: measurement.unit.is_time(),
            series: Vec::new(),
            error: None,
            host: self.host.clone(),
        }
    }

    fn failure(&self, step: &Step, subject: &str, error: String) -> Record {
        let nothing = Measurement { better: Better::Lower, ..Measurement::count(FAILURE, 0) };
        Record { error: Some(error), ..self.empty(step, subject, &nothing) }
    }
}

fn takes_part(bench: &dyn Bench, subject: &dyn Subject, size: Size) -> bool {
    subject.only().is_none_or(|only| only == bench.name()) && bench.takes(subject.name(), size)
}

fn told(step: &Step) -> String {
    let warm_up = if step.warm_up { " (warm-up)" } else { "" };
    format!("{}{warm_up}: {}", step.bench, step.subjects.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_into(folder: &Path) -> Run {
        Run {
            host: Host::default(),
            writer: Writer::open(&folder.join(RESULTS), true).unwrap(),
            records: HashMap::new(),
            failed: HashSet::new(),
            size: Size::Quick,
        }
    }

    fn step(last: bool) -> Step {
        Step { bench: "boot", subjects: vec!["garret".into()], warm_up: false, last, round: 1 }
    }

    fn sample(value: f64) -> Sampled {
        Sampled { setup: "plain".into(), measurements: vec![Measurement::less("exits", Unit::Count, value)] }
    }

    #[test]
    fn samples_gather_and_the_last_round_completes() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = run_into(folder.path());
        for (value, last) in [(3.0, false), (5.0, true)] {
            run.keep(&step(last), "garret", sample(value)).unwrap();
        }
        let records = result::read(&folder.path().join(RESULTS)).unwrap();
        assert_eq!((records.len(), records[0].median, records[0].complete), (1, Some(4.0), true));
        assert_eq!((records[0].low, records[0].high), (Some(3.0), Some(5.0)));
    }

    #[test]
    fn a_failure_is_a_result_without_a_number() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = run_into(folder.path());
        let record = run.failure(&step(false), "qemu-q35", "no such device".into());
        run.writer.write(&[record]).unwrap();
        let records = result::read(&folder.path().join(RESULTS)).unwrap();
        assert_eq!((records[0].median, records[0].error.as_deref()), (None, Some("no such device")));
        assert!(resumed(&folder.path().join(RESULTS)).unwrap().is_empty());
        assert!(result::read(&folder.path().join(RESULTS)).unwrap().is_empty());
    }

    #[test]
    fn a_resumed_run_takes_only_missing_samples() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = run_into(folder.path());
        let cost =
            |value| Sampled { measurements: vec![Measurement::less(LAST_METRIC, Unit::Seconds, value)], ..sample(1.0) };
        run.keep(&step(false), "garret", cost(2.0)).unwrap();
        let records = resumed(&folder.path().join(RESULTS)).unwrap();
        let mut run = Run { records, ..run_into(folder.path()) };
        assert_eq!([run.samples("boot", "garret"), run.samples("boot", "qemu-q35")], [1, 0]);
        run.keep(&step(true), "garret", cost(4.0)).unwrap();
        let records = result::read(&folder.path().join(RESULTS)).unwrap();
        assert_eq!((records.len(), records[0].samples.as_slice(), records[0].complete), (1, &[2.0, 4.0][..], true));
    }

    #[test]
    fn each_bench_takes_its_subjects() {
        let subjects = Programs::new(Path::new("/usr/lib/garret"), &["firecracker=/f".into()]).unwrap().subjects();
        let names = |bench: &str, size| {
            let benches = bench::all(size);
            let bench = benches.iter().find(|found| found.name() == bench).unwrap();
            let subjects = subjects.iter().filter(|subject| takes_part(bench.as_ref(), subject.as_ref(), size));
            subjects.map(|subject| subject.name()).collect::<Vec<_>>().join(" ")
        };
        for (bench, size, expected) in [
            ("boot", Size::Quick, "garret qemu-microvm qemu-q35 firecracker"),
            ("fs", Size::Quick, "garret qemu-microvm qemu-q35"),
            ("devcontainer", Size::Full, "garret"),
            ("memory", Size::Quick, "garret qemu-microvm qemu-virtio-mem firecracker"),
            ("memory", Size::Full, "garret qemu-microvm qemu-q35 qemu-virtio-mem firecracker"),
        ] {
            assert_eq!(names(bench, size), expected, "{bench} {size:?}");
        }
    }

    #[test]
    fn an_unknown_name_is_an_error_with_the_known_ones() {
        let all = || bench::all(Size::Quick);
        assert_eq!(chosen_benches(all(), &["fs".into(), "boot".into()]).unwrap().len(), 2);
        assert_eq!(chosen_benches(all(), &[]).unwrap().len(), all().len());
        let error = chosen_benches(all(), &["disk".into()]).err().unwrap().to_string();
        assert!(error.starts_with("there is no bench disk; there are boot"), "{error}");
    }
}
