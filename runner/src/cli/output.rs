//! How data is printed.

use std::io::{self, ErrorKind, IsTerminal, Write};

use anyhow::Context;
use serde::Serialize;

/// Prints on standard output. A reader that has exited (`| head`) is not an error.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write"),
        _ => Ok(()),
    }
}

/// Prints text that a guest may control: on a terminal, its control sequences are made visible.
pub(super) fn print_untrusted(text: &str) -> anyhow::Result<()> {
    match io::stdout().is_terminal() {
        true => print(&escape_controls(text)),
        false => print(text),
    }
}

/// The text with its control characters made visible, as `cat -v` shows them, except line ends, tabs and colors.
pub(super) fn escape_controls(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let color = color_length(rest);
        if color > 0 || matches!(c, '\n' | '\t') || rest.starts_with("\r\n") || !c.is_control() {
            let (keep, behind) = rest.split_at(color.max(c.len_utf8()));
            out.push_str(keep);
            rest = behind;
            continue;
        }
        match u32::from(c) {
            code @ 0..0x20 => out.extend(['^', char::from(code as u8 + b'@')]),
            code => out.push_str(&format!("<{code:02x}>")),
        }
        rest = &rest[c.len_utf8()..];
    }
    out
}

/// The length of the color sequence at the start of the text (ECMA-48, SGR), or 0.
fn color_length(text: &str) -> usize {
    let Some(inside) = text.strip_prefix("\u{1b}[") else { return 0 };
    let end = inside.find(|c: char| !c.is_ascii_digit() && !";:".contains(c)).unwrap_or(inside.len());
    if inside[end..].starts_with('m') { end + 3 } else { 0 }
}

pub(super) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// A wire type's name, as in its JSON.
pub(super) fn wire_name(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => format!("{other:?}"),
    }
}

/// A time in its largest unit.
pub(super) fn duration(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A table with aligned columns. Characters that could break it, or a terminal, are made visible.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let plain = |cell: &String| cell.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(plain).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use garret_api::runner::MachinePhase;

    use super::*;

    #[test]
    fn columns_align_and_words_are_those_of_the_api() {
        let rows = [vec!["A".into(), "B".into()], vec!["long".into(), "ü".into()]];
        assert_eq!(table(&rows), "A     B\nlong  ü\n");
        assert_eq!(table(&[]), "");
        assert_eq!(table(&[vec!["a\u{1b}]0;x\u{7}\nb".into()]]), "a\u{fffd}]0;x\u{fffd}\u{fffd}b\n");
        assert_eq!(wire_name(&MachinePhase::Running), "running");
    }

    #[test]
    fn control_sequences_are_shown_and_not_obeyed() {
        for (text, shown) in [
            ("plain ü\tx\r\n", "plain ü\tx\r\n"),
            ("\u{1b}[1;31mred\u{1b}[m\u{1b}[38:5:1m", "\u{1b}[1;31mred\u{1b}[m\u{1b}[38:5:1m"),
            ("\u{1b}]0;title\u{7}", "^[]0;title^G"),
            ("\u{1b}[2J\u{1b}[6n", "^[[2J^[[6n"),
            ("safe\rrm -rf", "safe^Mrm -rf"),
            ("\u{9b}6n\u{7f}", "<9b>6n<7f>"),
            ("\u{1b}[31", "^[[31"),
            ("\u{1b}", "^["),
        ] {
            assert_eq!(escape_controls(text), shown);
        }
    }
}
