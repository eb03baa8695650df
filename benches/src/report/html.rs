//! `report.html`: one file without a script that needs no other file.

use std::fmt::Write;

use super::{Report, Row, plots};
use crate::result::Record;

const STYLE: &str = "
:root { color-scheme: light; --ink: #1d2330; --faint: #667085; --line: #e4e7ec; --good: #067647; --bad: #b42318; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 1080px; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.8rem; margin-bottom: .3rem } h2 { margin-top: 2.6rem; border-bottom: 1px solid var(--line); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; color: var(--faint); font-size: .85rem }
dd { margin: 0 } .caution { background: #fffaeb; border-left: 4px solid #f79009; padding: .6rem 1rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; margin: 1rem 0 }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left; white-space: normal }
small { color: var(--faint); white-space: normal }
.good { color: var(--good); font-weight: 600 } .bad { color: var(--bad); font-weight: 600 }
svg { max-width: 100%; height: auto } details { margin-top: 2rem } code { font-size: .75rem; overflow-wrap: anywhere }
";

/// The whole page.
///
/// # Errors
/// A plot cannot be drawn.
pub(super) fn page(report: &Report<'_>) -> anyhow::Result<String> {
    let mut text = String::from(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>garret: benchmarks</title>\n",
    );
    let _ = writeln!(text, "<style>{STYLE}</style>\n<h1>garret beside its peers</h1>");
    if let Some(caution) = report.caution() {
        let _ = writeln!(text, "<p class=\"caution\">{}</p>", escaped(&caution));
    }
    text.push_str("<dl>");
    for (name, value) in report.facts() {
        let _ = write!(text, "<dt>{}</dt><dd>{}</dd>", escaped(&name), escaped(&value));
    }
    text.push_str(
        "</dl>\n<p>Bars show garret's cost over a peer's, with the 95 % interval of the ratio of medians (bootstrap). Left of 1 \
         garret is better, whatever the unit.</p>\n",
    );
    for (title, picture) in
        [("Boot, phase by phase", plots::timeline(report)?), ("Resident memory over time", plots::memory(report)?)]
    {
        if let Some(picture) = picture {
            let _ = writeln!(text, "<h2>{title}</h2>\n{picture}");
        }
    }
    for (bench, rows) in &report.benches {
        let _ = writeln!(text, "<h2>{}</h2>", escaped(bench));
        text.push_str(&plots::ratios(report, rows)?.unwrap_or_default());
        text.push_str(&table(report, rows));
    }
    text.push_str(&failures(report));
    text.push_str(&setups(report));
    Ok(text)
}

fn table(report: &Report<'_>, rows: &[Row<'_>]) -> String {
    let mut text = String::from("<table><tr><th></th>");
    for subject in &report.subjects {
        let _ = write!(text, "<th>{}</th>", escaped(subject));
    }
    text.push_str("<th>÷ best peer</th></tr>\n");
    for row in rows {
        let _ = write!(text, "<tr><td>{}<br><small>{}</small></td>", escaped(row.metric), escaped(row.detail));
        for record in &row.cells {
            let _ = write!(text, "<td>{}</td>", record.map_or("–".to_owned(), |record| shown(report, row, record)));
        }
        let _ = writeln!(text, "{}</tr>", ratio(row));
    }
    text.push_str("</table>\n");
    text
}

fn shown(report: &Report<'_>, row: &Row<'_>, record: &Record) -> String {
    let note = row.note(record).map_or(String::new(), |note| format!("<br><small>{}</small>", escaped(note)));
    escaped(&report.shown(record)) + &note
}

/// The color, only if the interval is clearly on one side of 1.
fn ratio(row: &Row<'_>) -> String {
    let Some(cost) = row.against_best() else { return "<td>–</td>".to_owned() };
    let class = match cost {
        cost if cost.high < 1.0 => "good",
        cost if cost.low > 1.0 => "bad",
        _ => "",
    };
    format!("<td class=\"{class}\">{:.2}<br><small>{}</small></td>", cost.value, cost.interval(2))
}

fn failures(report: &Report<'_>) -> String {
    if report.failures.is_empty() {
        return String::new();
    }
    let item = |record: &&Record| {
        let why = escaped(record.error.as_deref().unwrap_or_default());
        format!("<li><b>{}, {}</b>: {why}</li>\n", escaped(&record.bench), escaped(&record.subject))
    };
    format!("<h2>Failed</h2>\n<ul>{}</ul>\n", report.failures.iter().map(item).collect::<String>())
}

fn setups(report: &Report<'_>) -> String {
    let item = |(bench, subject, setup): &(&str, &str, &str)| {
        format!("<p><b>{}, {}</b><br><code>{}</code></p>\n", escaped(bench), escaped(subject), escaped(setup))
    };
    let items: String = report.setups.iter().map(item).collect();
    format!("<details><summary>How each was started</summary>\n{items}</details>\n</html>\n")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::tests::records;
    use super::*;

    #[test]
    fn a_page_stands_alone() {
        let records = records();
        let page = page(&Report::new(&records)).unwrap();
        for part in [
            "<svg",
            "QEMU &lt;TCG&gt;",
            "no | &lt;kvm&gt;",
            "class=\"good\">0.25",
            "20.0 ms (emulated)",
            "30.0 ms (emulated)<br><small>after &lt;a&gt; pause</small>",
            "Resident memory",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        for part in ["<script", "src=", "@import", "<link", "<kvm>"] {
            assert!(!page.contains(part), "{part}");
        }
        // The only addresses are the names of the SVG vocabulary.
        assert_eq!(page.matches("http").count(), page.matches("xmlns=\"http").count());
    }
}
