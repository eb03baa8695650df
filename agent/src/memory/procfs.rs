//! The formats of `/proc/meminfo` and `/proc/pressure`.

use std::collections::BTreeMap;

use garret_api::agent::Pressure;

/// `/proc/meminfo` in bytes. Lines without a unit are counts of pages of other kinds and are left out.
pub(crate) fn parse_meminfo(text: &str) -> BTreeMap<String, u64> {
    let line = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let kib: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
        Some((name.to_owned(), kib.saturating_mul(1024)))
    };
    text.lines().filter_map(line).collect()
}

/// A file of `/proc/pressure`; absent lines (`full` of cpu on old kernels) are zero.
pub(crate) fn parse_pressure(text: &str) -> Pressure {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (average, total) = match words.next() {
            Some("some") => (&mut pressure.some_avg10, &mut pressure.some_total_us),
            Some("full") => (&mut pressure.full_avg10, &mut pressure.full_total_us),
            _ => continue,
        };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            match name {
                "avg10" => *average = value.parse().unwrap_or_default(),
                "total" => *total = value.parse().unwrap_or_default(),
                _ => {}
            }
        }
    }
    pressure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_in_bytes() {
        let memory = parse_meminfo("MemTotal:        1000 kB\nMemFree: 1 kB\nHugePages_Total:       3\nodd\n");
        assert_eq!(memory, BTreeMap::from([("MemTotal".into(), 1_024_000), ("MemFree".into(), 1024)]));
    }

    #[test]
    fn pressure_has_both_lines() {
        let text = "some avg10=1.50 avg60=0.00 avg300=0.00 total=42\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=7\n";
        let expected = Pressure { some_avg10: 1.5, some_total_us: 42, full_avg10: 0.25, full_total_us: 7 };
        assert_eq!(parse_pressure(text), expected);
        assert_eq!(
            parse_pressure("nonsense\nsome avg10=x total=9"),
            Pressure { some_total_us: 9, ..Default::default() }
        );
    }
}
