//! The regression gate: compares garret's counts with a committed baseline. The comparison is pure.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::result::{self, Better, Record};

/// The subject that is compared.
const SUBJECT: &str = "garret";
/// The metrics of a new baseline, and the tolerance of each in percent.
const GATED: &[(&str, f64)] = &[
    ("boot/kvm_run_to_init", 2.0),
    ("boot/io_exits_to_init", 2.0),
    ("boot/mmio_exits_to_init", 2.0),
    ("boot/exits_to_init", 10.0),
    ("boot/system_calls_to_init", 5.0),
    ("boot/kvm_run_to_agent", 2.0),
    ("boot/exits_to_agent", 15.0),
    ("boot/system_calls_to_agent", 10.0),
    ("footprint/vmm_private_bytes", 5.0),
    ("fs/untar_requests", 2.0),
    ("fs/git_add_requests", 2.0),
    ("fs/git_status_requests", 2.0),
    ("fs/git_status_system_calls", 5.0),
];

/// The arguments of `gate`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The committed baseline
    baseline: PathBuf,
    /// The results of `run --size gate`
    results: PathBuf,
    /// Write the results' values into the baseline, with this reason
    #[arg(long, value_name = "REASON")]
    update: Option<String>,
}

/// The expected values, by `bench/metric`.
pub(crate) type Baseline = BTreeMap<String, Expected>;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Expected {
    pub value: f64,
    /// The tolerance, in percent of the value.
    pub tolerance_percent: f64,
    /// Why it has this value.
    pub reason: String,
}

/// The result for one metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// Within the tolerance.
    Within,
    /// Better than the tolerance. The baseline must be renewed, else the difference hides the next regression.
    Better,
    /// It was not measured, or its measurement failed.
    Missing,
    /// Worse than the tolerance.
    Worse,
}

/// Compares and prints the result. Returns 0 if all is as expected, 1 if something is worse or missing, and 3 if the
/// baseline is out of date: something is only better.
///
/// # Errors
/// A file cannot be read or written.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let records = result::read(&options.results)?;
    if let Some(reason) = &options.update {
        let baseline = updated(&read(&options.baseline).unwrap_or_default(), &records, reason);
        ensure!(!baseline.is_empty(), "the results contain no metric of the gate");
        let text = serde_json::to_string_pretty(&baseline)? + "\n";
        fs::write(&options.baseline, text).with_context(|| options.baseline.display().to_string())?;
        println!("{}: {} values", options.baseline.display(), baseline.len());
        return Ok(ExitCode::SUCCESS);
    }
    let baseline = read(&options.baseline)?;
    let verdicts = judge(&baseline, &records);
    for (name, expected, found, verdict) in &verdicts {
        println!("{}", line(name, expected, *found, *verdict));
    }
    let worst = verdicts.iter().map(|(.., verdict)| *verdict).max().unwrap_or(Verdict::Missing);
    match worst {
        Verdict::Within => Ok(ExitCode::SUCCESS),
        Verdict::Better => {
            println!("better than the baseline: renew it in the same commit (garret-bench gate --update REASON …)");
            Ok(ExitCode::from(3))
        }
        Verdict::Missing | Verdict::Worse => Ok(ExitCode::FAILURE),
    }
}

fn read(path: &Path) -> anyhow::Result<Baseline> {
    let text = fs::read_to_string(path).with_context(|| format!("baseline {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("baseline {}", path.display()))
}

fn find<'a>(records: &'a [Record], name: &str) -> Option<&'a Record> {
    records.iter().find(|record| record.subject == SUBJECT && record.name() == name)
}

type Judged<'a> = (&'a str, &'a Expected, Option<f64>, Verdict);

/// Each expectation with the value that was found.
fn judge<'a>(baseline: &'a Baseline, records: &[Record]) -> Vec<Judged<'a>> {
    let judged = baseline.iter().map(|(name, expected)| {
        let found = find(records, name).and_then(|record| Some((record.median?, record.better)));
        let verdict = found.map_or(Verdict::Missing, |(value, better)| verdict(expected, value, better));
        (name.as_str(), expected, found.map(|(value, _)| value), verdict)
    });
    judged.collect()
}

fn verdict(expected: &Expected, value: f64, better: Better) -> Verdict {
    let room = expected.value.abs() * expected.tolerance_percent / 100.0;
    let off = match better {
        Better::Lower => value - expected.value,
        Better::Higher => expected.value - value,
    };
    match off {
        off if off > room => Verdict::Worse,
        off if off < -room => Verdict::Better,
        _ => Verdict::Within,
    }
}

fn line(name: &str, expected: &Expected, found: Option<f64>, verdict: Verdict) -> String {
    let Expected { value, tolerance_percent, reason } = expected;
    let told = match verdict {
        Verdict::Within => "ok",
        Verdict::Better => "BETTER",
        Verdict::Missing => "MISSING",
        Verdict::Worse => "WORSE",
    };
    let found = found.map_or("nothing".to_owned(), |found| format!("{found}"));
    let because = if verdict == Verdict::Within { String::new() } else { format!(" ({reason})") };
    format!("{told:8}{name}: {found}, expected {value} ± {tolerance_percent} %{because}")
}

/// The baseline with the values that were found. Only values that changed by more than their tolerance get the new
/// reason.
fn updated(old: &Baseline, records: &[Record], reason: &str) -> Baseline {
    let fresh = GATED.iter().map(|(name, tolerance)| {
        let expected = Expected { value: f64::NAN, tolerance_percent: *tolerance, reason: String::new() };
        ((*name).to_owned(), expected)
    });
    let known = old.iter().map(|(name, expected)| (name.clone(), expected.clone()));
    let mut baseline: Baseline = fresh.chain(known).collect();
    for (name, expected) in &mut baseline {
        let Some((value, better)) = find(records, name).and_then(|record| Some((record.median?, record.better))) else {
            continue;
        };
        if expected.value.is_nan() || verdict(expected, value, better) != Verdict::Within {
            expected.value = value;
            expected.reason = reason.to_owned();
        }
    }
    baseline.retain(|_, expected| !expected.value.is_nan());
    baseline
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::Unit;
    use crate::result::tests::record;
    use proptest::prelude::*;

    fn expected(value: f64, tolerance_percent: f64) -> Expected {
        Expected { value, tolerance_percent, reason: "first measured".into() }
    }

    #[test]
    fn a_verdict_depends_on_direction_and_tolerance() {
        for (value, better, verdict_is) in [
            (100.0, Better::Lower, Verdict::Within),
            (105.0, Better::Lower, Verdict::Within),
            (106.0, Better::Lower, Verdict::Worse),
            (94.0, Better::Lower, Verdict::Better),
            (94.0, Better::Higher, Verdict::Worse),
            (106.0, Better::Higher, Verdict::Better),
        ] {
            assert_eq!(verdict(&expected(100.0, 5.0), value, better), verdict_is, "{value}");
        }
        assert_eq!(verdict(&expected(0.0, 5.0), 1.0, Better::Lower), Verdict::Worse);
    }

    #[test]
    fn a_value_without_a_measurement_is_missing() {
        let baseline = Baseline::from([("a/m".into(), expected(10.0, 1.0)), ("a/n".into(), expected(10.0, 1.0))]);
        let records =
            [record("a", "m", "garret", Unit::Count, &[10.0]), record("a", "n", "qemu-q35", Unit::Count, &[10.0]), {
                let failed = record("a", "n", "garret", Unit::Count, &[]);
                Record { error: Some("x".into()), ..failed }
            }];
        let judged: Vec<_> = judge(&baseline, &records).into_iter().map(|(.., verdict)| verdict).collect();
        assert_eq!(judged, [Verdict::Within, Verdict::Missing]);
        let told = line("a/n", &baseline["a/n"], None, Verdict::Missing);
        assert_eq!(told, "MISSING a/n: nothing, expected 10 ± 1 % (first measured)");
    }

    #[test]
    fn an_update_keeps_the_reasons_of_what_stays() {
        let old = Baseline::from([
            ("boot/exits_to_agent".into(), expected(1000.0, 10.0)),
            ("fs/git_status_requests".into(), expected(50.0, 2.0)),
        ]);
        let records = [
            record("boot", "exits_to_agent", "garret", Unit::Count, &[1010.0]),
            record("fs", "git_status_requests", "garret", Unit::Count, &[40.0]),
            record("boot", "kvm_run_to_agent", "garret", Unit::Count, &[300.0]),
        ];
        let new = updated(&old, &records, "readdirplus");
        let told: Vec<_> = new.iter().map(|(name, e)| (name.as_str(), e.value, e.reason.as_str())).collect();
        assert_eq!(
            told,
            [
                ("boot/exits_to_agent", 1000.0, "first measured"),
                ("boot/kvm_run_to_agent", 300.0, "readdirplus"),
                ("fs/git_status_requests", 40.0, "readdirplus"),
            ]
        );
        assert!(updated(&Baseline::new(), &[], "x").is_empty());
    }

    proptest! {
        /// A value that is better in one direction is worse in the other, and the value itself is within the tolerance.
        #[test]
        fn directions_mirror(value in 1.0f64..1e9, found in 1.0f64..1e9, tolerance in 0.1f64..50.0) {
            let expected = expected(value, tolerance);
            let mirrored = match verdict(&expected, found, Better::Lower) {
                Verdict::Better => Verdict::Worse,
                Verdict::Worse => Verdict::Better,
                other => other,
            };
            prop_assert_eq!(verdict(&expected, found, Better::Higher), mirrored);
            prop_assert_eq!(verdict(&expected, value, Better::Lower), Verdict::Within);
        }
    }
}
