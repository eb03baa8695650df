//! fio's line of results (`--minimal --terse-version=3`). Its fields are separated by semicolons: five of the job, 41
//! of reading, 41 of writing. Each of the latter two begins with total KiB, KiB per second and operations per second.

use anyhow::Context;

use super::Measurement;
use crate::bench::work::Report;
use crate::result::Unit;

const READING: usize = 5;
const WRITING: usize = READING + 41;

/// Bytes and operations per second, of reading and writing together. A job does only one of them.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rates {
    bytes: f64,
    operations: f64,
}

fn parse(line: &str) -> Option<Rates> {
    let fields: Vec<&str> = line.split(';').collect();
    let field = |at: usize| fields.get(at)?.parse::<f64>().ok();
    let kib = field(READING + 1)? + field(WRITING + 1)?;
    Some(Rates { bytes: kib * 1024.0, operations: field(READING + 2)? + field(WRITING + 2)? })
}

/// One measurement of a fio case: bytes for large blocks, operations for small ones.
///
/// # Errors
/// The case printed no valid line.
pub(super) fn measurement(report: &Report, case: &str) -> anyhow::Result<Measurement> {
    let line = report.value(&format!("fio:{case}")).unwrap_or_default();
    let rates = parse(line).with_context(|| format!("{case}: fio printed {line:?}"))?;
    Ok(if case.starts_with("seq_") {
        Measurement::more(format!("{case}_rate"), Unit::BytesPerSecond, rates.bytes).with("1 MiB blocks, direct")
    } else {
        Measurement::more(format!("{case}_rate"), Unit::PerSecond, rates.operations).with("4 KiB blocks, direct")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line with these figures, and zeros in all other fields.
    fn line(read: (u32, u32), write: (u32, u32)) -> String {
        let mut fields = vec!["0".to_owned(); 130];
        fields[0] = "3".into();
        fields[1] = "fio-3.39".into();
        for (at, (rate, operations)) in [(READING, read), (WRITING, write)] {
            fields[at + 1] = rate.to_string();
            fields[at + 2] = operations.to_string();
        }
        fields.join(";")
    }

    #[test]
    fn rates_are_found() {
        assert_eq!(parse(&line((2000, 500), (0, 0))), Some(Rates { bytes: 2_048_000.0, operations: 500.0 }));
        assert_eq!(parse(&line((0, 0), (10, 3))), Some(Rates { bytes: 10_240.0, operations: 3.0 }));
        assert_eq!(parse("3;fio-3.39;job"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_case_is_bytes_or_operations() {
        let report = Report {
            values: vec![("fio:seq_read".into(), line((10, 1), (0, 0))), ("fio:fsync".into(), line((0, 0), (8, 2)))],
            ..Report::default()
        };
        let of = |case: &str| measurement(&report, case).map(|measurement| (measurement.metric, measurement.value));
        assert_eq!(of("seq_read").unwrap(), ("seq_read_rate".into(), 10_240.0));
        assert_eq!(of("fsync").unwrap(), ("fsync_rate".into(), 2.0));
        assert!(of("rand_read").is_err());
    }
}
