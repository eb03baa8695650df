//! The budget table of CONTRIBUTING.md: how long each group of tests may take.

use anyhow::{Context, bail};
use std::collections::BTreeMap;
use std::time::Duration;

/// The table's head; the first cell of each row below is a group's name in backquotes.
const HEAD: &str = "| Group | Cold | Warm |";

/// One group's budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// With nothing in the caches.
    pub cold: Duration,
    /// With everything built once before.
    pub warm: Duration,
}

/// Machines differ in speed by a factor of two and more.
pub(super) const FAILS_BEYOND: u32 = 3;

/// What a group's time means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Within,
    /// Reported; the group passes.
    Over,
    /// Beyond [`FAILS_BEYOND`] times the budget.
    Failed,
}

/// Compares what a group took with its budget.
pub(super) fn judge(budget: Duration, took: Duration) -> Verdict {
    if took <= budget {
        Verdict::Within
    } else if took <= budget * FAILS_BEYOND {
        Verdict::Over
    } else {
        Verdict::Failed
    }
}

/// Reads the table out of the document. Times are in whole minutes.
///
/// # Errors
/// There is no such table, or a row of it is not a name and two numbers: the error quotes it.
pub(super) fn parse(document: &str) -> anyhow::Result<BTreeMap<String, Budget>> {
    let mut lines = document.lines().skip_while(|line| !line.starts_with(HEAD));
    if lines.by_ref().take(2).count() < 2 {
        bail!("no table that begins with `{HEAD}`");
    }
    lines.take_while(|line| line.starts_with('|')).map(row).collect()
}

fn row(line: &str) -> anyhow::Result<(String, Budget)> {
    let cells: Vec<_> = line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect();
    let minutes = |cell: &str| Some(Duration::from_secs(cell.strip_suffix(" min")?.parse::<u64>().ok()? * 60));
    match cells[..] {
        [name, cold, warm, ..] => Ok((
            name.to_owned(),
            Budget {
                cold: minutes(cold).with_context(|| format!("`{cold}` is not `N min` in `{line}`"))?,
                warm: minutes(warm).with_context(|| format!("`{warm}` is not `N min` in `{line}`"))?,
            },
        )),
        _ => bail!("not a group and two times: `{line}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_found_among_other_text_and_tables() {
        let text = "# x\n| a | b |\n|---|---|\n| 1 | 2 |\n\n| Group | Cold | Warm | What |\n|---|---|---|---|\n\
                    | `lint` | 6 min | 2 min | fmt |\n| `unit` | 10 min | 3 min | all |\n\nmore | text |\n";
        let table = parse(text).unwrap();
        assert_eq!(table.len(), 2);
        assert_eq!(table["lint"], Budget { cold: Duration::from_secs(360), warm: Duration::from_secs(120) });
    }

    #[test]
    fn only_beyond_three_times_the_budget_a_group_fails() {
        for (budget_s, took_s, verdict) in [
            (60, 0, Verdict::Within),
            (60, 60, Verdict::Within),
            (60, 61, Verdict::Over),
            (60, 180, Verdict::Over),
            (60, 181, Verdict::Failed),
            (1200, 3600, Verdict::Over),
            (1200, 3601, Verdict::Failed),
        ] {
            let (budget, took) = (Duration::from_secs(budget_s), Duration::from_secs(took_s));
            assert_eq!(judge(budget, took), verdict, "{took_s} s of {budget_s} s");
        }
    }

    #[test]
    fn a_bad_table_is_an_error_that_quotes_it() {
        for (text, said) in [
            ("", "no table"),
            ("| Group | Cold | Warm |\n|-|-|-|\n| `x` | 6 | 2 min |", "`6` is not `N min`"),
            ("| Group | Cold | Warm |\n|-|-|-|\n| `x` | 6 min |", "not a group and two times"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn the_projects_own_table_has_every_group_and_keeps_the_promise() {
        let table = parse(include_str!("../../../CONTRIBUTING.md")).unwrap();
        assert!(super::super::Group::ALL.iter().all(|group| table.contains_key(group.name())), "{table:?}");
        assert_eq!(table.len(), super::super::Group::ALL.len());
        assert!(table.values().map(|budget| budget.cold).sum::<Duration>() <= Duration::from_secs(52 * 60));
        assert!(table.values().map(|budget| budget.warm).sum::<Duration>() <= Duration::from_secs(22 * 60));
    }
}
