//! Reports: tables and plots. This file decides purely what is shown, and the other files write it.

mod html;
mod markdown;
mod plots;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;

use crate::host::Host;
use crate::result::{self, Better, Record, Unit};
use crate::statistics::{self, Estimate};

/// The subject that is compared with the others.
const OWN: &str = "garret";

/// The arguments of `report`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The results
    #[arg(default_value = "results.jsonl")]
    results: PathBuf,
    /// The folder for report.md and report.html; by default that of the results
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// Writes `report.md` and `report.html`.
///
/// # Errors
/// The results cannot be read, or the report cannot be written.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let records = result::read(&options.results)?;
    ensure!(!records.is_empty(), "{} is empty", options.results.display());
    let folder = options.out.clone().or_else(|| options.results.parent().map(PathBuf::from)).unwrap_or_default();
    let report = Report::new(&records);
    for (name, text) in [("report.md", markdown::page(&report)), ("report.html", html::page(&report)?)] {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// The contents of a report.
pub(crate) struct Report<'a> {
    /// The host, from the last record.
    pub host: Option<&'a Host>,
    /// Columns: garret first, then in order of appearance.
    pub subjects: Vec<&'a str>,
    /// Metrics, by bench.
    pub benches: Vec<(&'a str, Vec<Row<'a>>)>,
    /// Failed subjects: bench, subject and reason.
    pub failures: Vec<&'a Record>,
    /// How each subject was started: bench, subject and setup.
    pub setups: Vec<(&'a str, &'a str, &'a str)>,
}

/// One metric of all subjects.
pub(crate) struct Row<'a> {
    /// The metric's name without the bench.
    pub metric: &'a str,
    /// The detail of the first subject.
    pub detail: &'a str,
    /// Cells, by column.
    pub cells: Vec<Option<&'a Record>>,
    /// garret's cost divided by each peer's, by column. Above 1 the peer is better, whatever the unit.
    pub costs: Vec<Option<Estimate>>,
}

impl Row<'_> {
    /// A subject's detail, if it differs from the first subject's.
    pub(crate) fn note<'r>(&self, record: &'r Record) -> Option<&'r str> {
        (record.detail != self.detail && !record.detail.is_empty()).then_some(record.detail.as_str())
    }

    /// garret compared with the best peer.
    pub(crate) fn against_best(&self) -> Option<Estimate> {
        self.costs.iter().flatten().copied().max_by(|a, b| a.value.total_cmp(&b.value))
    }
}

impl<'a> Report<'a> {
    /// Makes a report of the records of one file.
    pub(crate) fn new(records: &'a [Record]) -> Self {
        let mut subjects: Vec<&str> = Vec::new();
        let mut names: Vec<(&str, &str)> = Vec::new();
        for record in records {
            push_new(&mut subjects, &record.subject);
            if record.error.is_none() {
                push_new(&mut names, (&record.bench, &record.metric));
            }
        }
        subjects.sort_by_key(|name| *name != OWN);
        let mut benches: Vec<(&str, Vec<Row>)> = Vec::new();
        for (bench, metric) in names {
            let row = row(records, bench, metric, &subjects);
            match benches.iter_mut().find(|(name, _)| *name == bench) {
                Some((_, rows)) => rows.push(row),
                None => benches.push((bench, vec![row])),
            }
        }
        let mut setups: Vec<(&str, &str, &str)> = Vec::new();
        for record in records.iter().filter(|record| !record.setup.is_empty()) {
            if !setups
                .iter()
                .any(|(bench, subject, _)| (*bench, *subject) == (record.bench.as_str(), record.subject.as_str()))
            {
                setups.push((record.bench.as_str(), record.subject.as_str(), record.setup.as_str()));
            }
        }
        let failures = records.iter().filter(|record| record.error.is_some()).collect();
        Self { host: records.last().map(|record| &record.host), subjects, benches, failures, setups }
    }

    /// A warning about times, if they are not meaningful.
    pub(crate) fn caution(&self) -> Option<String> {
        let what = self.host?.platform.caution()?;
        Some(format!(
            "This host: {what}. Counts, and ratios between subjects of this run, mean something; times by themselves do \
             not, and are marked ({what})."
        ))
    }

    /// A value, marked if it is a time that is not meaningful by itself.
    pub(crate) fn shown(&self, record: &Record) -> String {
        let Some(median) = record.median else { return "–".to_owned() };
        let mark = self.host.and_then(|host| host.platform.caution()).filter(|_| record.absolute_time);
        let unfinished = if record.complete { "" } else { " (not all rounds)" };
        format!("{}{}{unfinished}", value(median, record.unit), mark.map_or(String::new(), |mark| format!(" ({mark})")))
    }

    /// The facts about the host, by name.
    pub(crate) fn facts(&self) -> Vec<(String, String)> {
        let Some(host) = self.host else { return Vec::new() };
        let counted = if host.icount { ", counting instructions" } else { "" };
        let platform = host.platform.caution().unwrap_or("hardware");
        let machine = format!("{} × {}, {} MiB, {platform}{counted}", host.cpus, host.cpu, host.memory_mib);
        let fixed =
            [("host", machine.as_str()), ("kernel", &host.kernel), ("commit", &host.commit), ("date", &host.date)];
        let fixed = fixed.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let versions = host.versions.iter().filter(|(_, version)| !version.is_empty());
        fixed.into_iter().chain(versions.map(|(name, version)| (name.clone(), version.clone()))).collect()
    }
}

fn push_new<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

fn row<'a>(records: &'a [Record], bench: &str, metric: &str, subjects: &[&str]) -> Row<'a> {
    let cell = |subject: &&str| {
        records.iter().find(|record| record.bench == bench && record.metric == metric && record.subject == *subject)
    };
    let cells: Vec<Option<&Record>> = subjects.iter().map(cell).collect();
    let own = cells.iter().flatten().find(|record| record.subject == OWN).copied();
    let costs = cells.iter().map(|cell| cost(own?, (*cell)?)).collect();
    // The name came from a record, so that record exists.
    let first = cells.iter().flatten().next();
    Row {
        metric: first.map_or("", |record| &record.metric),
        detail: first.map_or("", |record| &record.detail),
        cells,
        costs,
    }
}

fn cost(own: &Record, peer: &Record) -> Option<Estimate> {
    if peer.subject == OWN {
        return None;
    }
    let ratio = statistics::of_ratio(&own.samples, &peer.samples)?;
    Some(match own.better {
        Better::Lower => ratio,
        Better::Higher => ratio.inverse(),
    })
}

/// A number with its unit, in three digits.
pub(crate) fn value(value: f64, unit: Unit) -> String {
    const BINARY: &[(f64, &str)] =
        &[((1u64 << 30) as f64, " GiB"), ((1u64 << 20) as f64, " MiB"), (1024.0, " KiB"), (1.0, " B")];
    const TIME: &[(f64, &str)] = &[(1.0, " s"), (1e-3, " ms"), (1e-6, " µs"), (1e-9, " ns")];
    const PLAIN: &[(f64, &str)] = &[(1e6, "M"), (1e3, "k")];
    match unit {
        Unit::Count => scaled(value, PLAIN),
        Unit::Bytes => scaled(value, BINARY),
        Unit::Nanoseconds => scaled(value * 1e-9, TIME),
        Unit::Milliseconds => scaled(value * 1e-3, TIME),
        Unit::Seconds => scaled(value, TIME),
        Unit::GibPerSecond => format!("{}/s", scaled(value * f64::from(1 << 30), BINARY)),
        Unit::BytesPerSecond => format!("{}/s", scaled(value, BINARY)),
        Unit::PerSecond => format!("{}/s", scaled(value, PLAIN)),
        Unit::GibSeconds => format!("{value:.2} GiB·s"),
        Unit::Ratio => format!("{value:.3}"),
    }
}

fn scaled(value: f64, steps: &[(f64, &str)]) -> String {
    let whole = value.fract() == 0.0 && value.abs() < 1e4;
    let step = steps.iter().find(|(step, suffix)| value.abs() >= *step && !(whole && *suffix == "k")).copied();
    let (scale, suffix) = step.unwrap_or((1.0, ""));
    let value = value / scale;
    let digits = match value.abs() {
        size if size >= 100.0 || (whole && scale == 1.0) => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}{suffix}")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::host::Platform;
    use crate::result::tests::record;

    /// Results with everything that a report can show.
    pub(crate) fn records() -> Vec<Record> {
        let emulated = Host { platform: Platform::Emulated, cpu: "QEMU <TCG>".into(), cpus: 2, ..Host::default() };
        let rate = record("block", "rand_read_rate", "garret", Unit::PerSecond, &[2000.0, 2000.0]);
        let mut records = vec![
            record("boot", "exits_to_agent", "qemu-q35", Unit::Count, &[4000.0, 4000.0]),
            record("boot", "exits_to_agent", "garret", Unit::Count, &[1000.0, 1000.0]),
            record("boot", "setup_ns", "garret", Unit::Nanoseconds, &[2e7, 2e7]),
            Record {
                detail: "after <a> pause".into(),
                ..record("boot", "setup_ns", "qemu-q35", Unit::Nanoseconds, &[3e7])
            },
            record("boot", "init_seconds", "garret", Unit::Seconds, &[1.0, 1.0]),
            record("boot", "agent_seconds", "garret", Unit::Seconds, &[1.5, 1.5]),
            Record { better: Better::Higher, ..rate.clone() },
            Record { better: Better::Higher, subject: "qemu-q35".into(), samples: vec![4000.0; 2], ..rate },
            Record {
                series: vec![(0.0, 1e8), (30.0, 2e8)],
                ..record("footprint", "idle_resident_bytes", "garret", Unit::Bytes, &[2e8])
            },
            Record { error: Some("no | <kvm>".into()), ..record("fs", "failure", "qemu-microvm", Unit::Count, &[]) },
        ];
        for record in &mut records {
            record.host = emulated.clone();
            record.setup = "-machine q35".into();
        }
        records
    }

    #[test]
    fn costs_have_one_direction() {
        let records = records();
        let report = Report::new(&records);
        assert_eq!(report.subjects, ["garret", "qemu-q35", "qemu-microvm"]);
        let cost = |bench: &str| {
            let (_, rows) = report.benches.iter().find(|(name, _)| *name == bench).unwrap();
            rows[0].against_best().unwrap().value
        };
        assert_eq!(cost("boot"), 0.25);
        assert_eq!(cost("block"), 2.0);
        assert_eq!((report.failures.len(), report.benches.len()), (1, 3));
    }

    #[test]
    fn times_of_an_emulated_host_are_marked() {
        let records = records();
        let report = Report::new(&records);
        assert_eq!(report.shown(&records[1]), "1000");
        assert_eq!(report.shown(&records[2]), "20.0 ms (emulated)");
        assert!(report.caution().unwrap().contains("emulated"));
        assert!(report.facts()[0].1.contains("2 × QEMU <TCG>"));
    }

    #[test]
    fn numbers_have_three_digits() {
        for (number, unit, expected) in [
            (1234.0, Unit::Count, "1234"),
            (9.0, Unit::Count, "9"),
            (7.0, Unit::Seconds, "7 s"),
            (56_789.0, Unit::Count, "56.8k"),
            (5_678_900.0, Unit::Count, "5.68M"),
            (1.25, Unit::Count, "1.25"),
            (0.0, Unit::Bytes, "0"),
            (3_355_443.0, Unit::Bytes, "3.20 MiB"),
            (512.0, Unit::Bytes, "512 B"),
            (0.0123, Unit::Seconds, "12.3 ms"),
            (45_000.0, Unit::Nanoseconds, "45.0 µs"),
            (104_857_600.0, Unit::BytesPerSecond, "100 MiB/s"),
            (12_345.0, Unit::PerSecond, "12.3k/s"),
            (1.5, Unit::GibSeconds, "1.50 GiB·s"),
            (0.5, Unit::GibPerSecond, "512 MiB/s"),
            (850.0, Unit::Milliseconds, "850 ms"),
            (1.0049, Unit::Ratio, "1.005"),
        ] {
            assert_eq!(value(number, unit), expected, "{number} {unit:?}");
        }
    }
}
