//! The results of a run: `results.jsonl`, one [`Record`] per line.
//!
//! A run appends a record after each round of its bench, with the samples so far. The last line of a key (bench,
//! metric, subject) is the valid one. So an interrupted run keeps what it has. A reader ignores a torn last line.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::scale::Size;
use crate::statistics;

/// One metric of one subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// The bench: `boot`, `fs`, ….
    pub bench: String,
    /// The metric of the bench: `exits_to_agent`.
    pub metric: String,
    /// The subject: `garret`, `qemu-microvm`, ….
    pub subject: String,
    /// The unit of all numbers in this record.
    pub unit: Unit,
    /// Which direction is better.
    pub better: Better,
    /// The samples' median; absent if there is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median: Option<f64>,
    /// The lower end of the median's 95 % interval; absent with fewer than two samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low: Option<f64>,
    /// Its upper end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
    /// All samples in the order they were taken, without the warm-up's.
    #[serde(default)]
    pub samples: Vec<f64>,
    /// Whether it includes all planned rounds.
    pub complete: bool,
    /// The size of the run.
    pub size: Size,
    /// What exactly was done: number of files, queue depth, ….
    #[serde(default)]
    pub detail: String,
    /// How the subject was started: devices, the root's transport, the kernel's command line.
    #[serde(default)]
    pub setup: String,
    /// Whether it depends on the host's speed. On an emulated host such a number is meaningful only in ratios.
    pub absolute_time: bool,
    /// The course over time (seconds and value) of one of the rounds, for metrics that have one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub series: Vec<(f64, f64)>,
    /// Why there is no result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The host of the run.
    pub host: Host,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    /// A plain count.
    Count,
    Bytes,
    Nanoseconds,
    Milliseconds,
    Seconds,
    GibPerSecond,
    BytesPerSecond,
    /// Operations per second.
    PerSecond,
    /// Memory held over time: GiB times seconds.
    GibSeconds,
    /// A ratio of two numbers of the same kind.
    Ratio,
}

impl Unit {
    /// Whether the number depends on the host's speed.
    pub(crate) fn is_time(self) -> bool {
        !matches!(self, Unit::Count | Unit::Bytes | Unit::Ratio)
    }
}

/// Which direction is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Better {
    /// Less is better.
    Lower,
    /// More is better.
    Higher,
}

/// Bench, metric and subject, which identify a record.
pub(crate) type Key = (String, String, String);

impl Record {
    pub(crate) fn key(&self) -> Key {
        (self.bench.clone(), self.metric.clone(), self.subject.clone())
    }

    /// `bench/metric`.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.bench, self.metric)
    }

    /// Computes the fields that follow from the samples.
    pub(crate) fn summarized(mut self) -> Self {
        self.median = statistics::median(&self.samples);
        let estimate = statistics::of_median(&self.samples);
        self.low = estimate.map(|estimate| estimate.low);
        self.high = estimate.map(|estimate| estimate.high);
        self
    }
}

/// The last record of each key in a file, in the order in which keys first appear. A torn last line is skipped.
///
/// # Errors
/// The file cannot be read, or a line other than the last is not a record.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Record>> {
    let text = fs::read_to_string(path).with_context(|| format!("results {}", path.display()))?;
    parse(&text).with_context(|| format!("results {}", path.display()))
}

fn parse(text: &str) -> anyhow::Result<Vec<Record>> {
    let mut places: HashMap<Key, usize> = HashMap::new();
    let mut records: Vec<Record> = Vec::new();
    let lines = text.split_inclusive('\n').enumerate();
    for (number, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        let record: Record = match serde_json::from_str(line) {
            Ok(record) => record,
            Err(_) if !line.ends_with('\n') => break,
            Err(error) => bail!("line {}: {error}", number + 1),
        };
        match places.get(&record.key()) {
            Some(place) => records[*place] = record,
            None => {
                places.insert(record.key(), records.len());
                records.push(record);
            }
        }
    }
    Ok(records)
}

/// Replaces a file's contents atomically.
///
/// # Errors
/// It cannot be written.
pub(crate) fn replace(path: &Path, records: &[Record]) -> anyhow::Result<()> {
    let new = path.with_extension("jsonl.new");
    Writer::open(&new, false)?.write(records)?;
    fs::rename(&new, path).with_context(|| format!("cannot replace {}", path.display()))
}

/// The open results file of a run.
pub(crate) struct Writer(File);

impl Writer {
    /// Opens the file. It is emptied unless the run continues it. A torn last line is always removed.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn open(path: &Path, resume: bool) -> anyhow::Result<Self> {
        let whole = match fs::read(path) {
            Ok(text) if resume => text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1),
            Ok(_) => 0,
            Err(error) if error.kind() == ErrorKind::NotFound => 0,
            Err(error) => return Err(error).with_context(|| format!("results {}", path.display())),
        };
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        file.set_len(whole as u64)?;
        Ok(Self(file))
    }

    /// Appends records in one write.
    ///
    /// # Errors
    /// For example, the disk is full.
    pub(crate) fn write(&mut self, records: &[Record]) -> anyhow::Result<()> {
        let mut lines = Vec::new();
        for record in records {
            serde_json::to_writer(&mut lines, record)?;
            lines.push(b'\n');
        }
        self.0.write_all(&lines).context("cannot write the results")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A record as a run writes it.
    pub(crate) fn record(bench: &str, metric: &str, subject: &str, unit: Unit, samples: &[f64]) -> Record {
        Record {
            bench: bench.into(),
            metric: metric.into(),
            subject: subject.into(),
            unit,
            better: Better::Lower,
            median: None,
            low: None,
            high: None,
            samples: samples.to_vec(),
            complete: true,
            size: Size::Quick,
            detail: String::new(),
            setup: String::new(),
            absolute_time: unit.is_time(),
            series: Vec::new(),
            error: None,
            host: Host::default(),
        }
        .summarized()
    }

    fn line(subject: &str, samples: &[f64]) -> String {
        let record = record("boot", "exits", subject, Unit::Count, samples);
        serde_json::to_string(&record).unwrap() + "\n"
    }

    #[test]
    fn a_written_record_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        let records = [record("a", "m", "garret", Unit::Seconds, &[1.0, 2.0]), {
            let failed = record("a", "m", "qemu-q35", Unit::Count, &[]);
            Record { error: Some("no such program".into()), ..failed }
        }];
        Writer::open(&path, true).unwrap().write(&records).unwrap();
        assert_eq!(read(&path).unwrap(), records);
        assert_eq!(records[0].median, Some(1.5));
        assert_eq!(records[1].median, None);
    }

    #[test]
    fn the_last_line_of_a_key_counts_and_a_torn_one_does_not() {
        let text = line("garret", &[1.0]) + &line("qemu-q35", &[5.0]) + &line("garret", &[1.0, 3.0]);
        let records = parse(&text).unwrap();
        assert_eq!(records.iter().map(|record| record.median).collect::<Vec<_>>(), [Some(2.0), Some(5.0)]);
        for end in 1..line("garret", &[9.0]).len() {
            let torn = text.clone() + &line("garret", &[9.0])[..end - 1];
            assert_eq!(parse(&torn).unwrap(), records, "{end}");
        }
        assert!(parse(&format!("nonsense\n{text}")).unwrap_err().to_string().starts_with("line 1"));
    }

    #[test]
    fn a_torn_line_is_cut_off_before_more_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        fs::write(&path, line("garret", &[1.0]) + "{\"bench\":").unwrap();
        Writer::open(&path, true).unwrap().write(&[record("b", "m", "garret", Unit::Count, &[2.0])]).unwrap();
        assert_eq!(read(&path).unwrap().len(), 2);
        Writer::open(&path, false).unwrap();
        assert_eq!(read(&path).unwrap(), []);
    }
}
