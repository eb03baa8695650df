//! `report.md`.

use std::fmt::Write;

use super::{Report, Row};
use crate::result::Record;

pub(super) fn page(report: &Report<'_>) -> String {
    let mut text = String::from("# Benchmarks\n\n");
    if let Some(caution) = report.caution() {
        let _ = writeln!(text, "**{caution}**\n");
    }
    for (name, value) in report.facts() {
        let _ = writeln!(text, "- {name}: {}", cell(&value));
    }
    text.push_str(
        "\nNumbers are medians. The last column is garret's cost over the best peer's, with its 95 % interval (bootstrap): \
         below 1 garret is better, whatever the unit.\n",
    );
    for (bench, rows) in &report.benches {
        let _ = writeln!(text, "\n## {bench}\n\n| | {} | garret ÷ best peer |", report.subjects.join(" | "));
        let _ = writeln!(text, "|---|{}--:|", "--:|".repeat(report.subjects.len()));
        for row in rows {
            let _ = writeln!(text, "{}", line(report, row));
        }
    }
    if !report.failures.is_empty() {
        text.push_str("\n## Failed\n\n");
    }
    for record in &report.failures {
        let why = cell(record.error.as_deref().unwrap_or_default());
        let _ = writeln!(text, "- {}, {}: {why}", record.bench, record.subject);
    }
    text.push_str("\n## How each was started\n\n");
    for (bench, subject, setup) in &report.setups {
        let _ = writeln!(text, "- {bench}, {subject}: `{setup}`");
    }
    text
}

fn line(report: &Report<'_>, row: &Row<'_>) -> String {
    let small = |text: &str| if text.is_empty() { String::new() } else { format!("<br><small>{}</small>", cell(text)) };
    let detail = small(row.detail);
    let shown = |record: &Record| report.shown(record) + &small(row.note(record).unwrap_or_default());
    let cells = row.cells.iter().map(|record| record.map_or("–".to_owned(), shown));
    let ratio = row.against_best().map_or("–".to_owned(), |cost| format!("{:.2} {}", cost.value, cost.interval(2)));
    format!("| {}{detail} | {} | {ratio} |", row.metric, cells.collect::<Vec<_>>().join(" | "))
}

/// Escapes the characters that would end a cell or begin an element.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::super::tests::records;
    use super::*;

    #[test]
    fn a_page_has_values_ratios_and_failures() {
        let records = records();
        let page = page(&Report::new(&records));
        for part in [
            "## boot\n\n| | garret | qemu-q35 | qemu-microvm | garret ÷ best peer |\n|---|--:|--:|--:|--:|\n",
            "| exits_to_agent | 1000 | 4000 | – | 0.25 [0.25, 0.25] |",
            "| setup_ns | 20.0 ms (emulated) | 30.0 ms (emulated)<br><small>after &lt;a> pause</small> | – | 0.67",
            "- fs, qemu-microvm: no \\| &lt;kvm>",
            "- boot, qemu-q35: `-machine q35`",
            "times by themselves do not, and are marked (emulated)",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
    }
}
