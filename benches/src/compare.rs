//! Compares two runs.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;

use crate::result::{self, Better, Key, Record};
use crate::statistics::{self, Estimate};

/// The two results to compare.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Before
    old: PathBuf,
    /// After
    new: PathBuf,
    /// Also show unchanged metrics
    #[arg(long)]
    all: bool,
}

/// A smaller ratio is no change, even if it is certain.
const NOTHING: f64 = 0.01;

/// How a metric changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Better,
    Worse,
    /// The interval contains 1, or the difference is too small.
    None,
}

/// Prints the changes.
///
/// # Errors
/// A file cannot be read.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    print!("{}", compared(&result::read(&options.old)?, &result::read(&options.new)?, options.all));
    Ok(())
}

fn compared(old: &[Record], new: &[Record], all: bool) -> String {
    let before: HashMap<Key, &Record> = old.iter().map(|record| (record.key(), record)).collect();
    let mut text = String::new();
    if old.first().zip(new.first()).is_some_and(|(old, new)| differ(old, new)) {
        text.push_str("The two runs differ in host or size: only counts can be compared.\n\n");
    }
    text.push_str("| metric | subject | before | after | after ÷ before | |\n|---|---|--:|--:|--:|---|\n");
    let mut unchanged = 0;
    for record in new {
        let Some(old) = before.get(&record.key()) else { continue };
        let ratio = statistics::of_ratio(&record.samples, &old.samples);
        let change = ratio.map_or(Change::None, |ratio| change(ratio, record.better));
        let failed = record.error.is_some() != old.error.is_some();
        if change == Change::None && !failed && !all {
            unchanged += 1;
            continue;
        }
        let _ = writeln!(text, "{}", row(old, record, ratio, change));
    }
    let _ = writeln!(text, "\n{unchanged} metrics: no certain change.");
    text
}

fn differ(old: &Record, new: &Record) -> bool {
    let facts = |record: &Record| (record.host.platform, record.host.cpu.clone(), record.size);
    facts(old) != facts(new)
}

fn change(ratio: Estimate, better: Better) -> Change {
    let certain = ratio.low > 1.0 || ratio.high < 1.0;
    if !certain || (ratio.value - 1.0).abs() < NOTHING {
        return Change::None;
    }
    match (ratio.value < 1.0) == (better == Better::Lower) {
        true => Change::Better,
        false => Change::Worse,
    }
}

fn row(old: &Record, new: &Record, ratio: Option<Estimate>, change: Change) -> String {
    let value = |record: &Record| match (&record.error, record.median) {
        (Some(error), _) => format!("failed: {error}"),
        (None, Some(value)) => crate::report::value(value, record.unit),
        (None, None) => "–".to_owned(),
    };
    let ratio = ratio.map_or("–".into(), |ratio| format!("{:.3} {}", ratio.value, ratio.interval(3)));
    let told = match change {
        Change::Better => "better",
        Change::Worse => "**worse**",
        Change::None => "",
    };
    format!("| {} | {} | {} | {} | {ratio} | {told} |", new.name(), new.subject, value(old), value(new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::Unit;
    use crate::result::tests::record;

    #[test]
    fn only_certain_changes_are_shown() {
        let old = [
            record("a", "faster", "garret", Unit::Seconds, &[10.0, 10.1, 9.9]),
            record("a", "noise", "garret", Unit::Seconds, &[10.0, 20.0, 5.0]),
            record("a", "slower", "garret", Unit::Count, &[100.0, 100.0]),
            record("a", "gone", "garret", Unit::Count, &[1.0]),
        ];
        let new = [
            record("a", "faster", "garret", Unit::Seconds, &[5.0, 5.1, 4.9]),
            record("a", "noise", "garret", Unit::Seconds, &[9.0, 21.0, 6.0]),
            record("a", "slower", "garret", Unit::Count, &[120.0, 120.0]),
            record("a", "new", "garret", Unit::Count, &[1.0]),
        ];
        let text = compared(&old, &new, false);
        let rows: Vec<_> = text.lines().filter(|line| line.starts_with("| a/")).collect();
        assert_eq!(rows.len(), 2, "{text}");
        assert!(rows[0].contains("a/faster") && rows[0].ends_with("| better |"), "{text}");
        assert!(rows[1].contains("1.200 [1.200, 1.200]") && rows[1].ends_with("**worse** |"), "{text}");
        assert!(text.contains("1 metrics: no certain"), "{text}");
        assert_eq!(compared(&old, &new, true).lines().filter(|line| line.starts_with("| a/")).count(), 3);
    }

    #[test]
    fn a_failure_is_a_change() {
        let good = record("a", "failure", "qemu-q35", Unit::Count, &[]);
        let bad = Record { error: Some("no kvm".into()), ..good.clone() };
        assert!(compared(&[good], &[bad], false).contains("failed: no kvm"));
    }
}
