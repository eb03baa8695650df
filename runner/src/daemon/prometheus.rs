//! The Prometheus text exposition format, version 0.0.4.

use std::fmt::{Display, Write};

/// The media type of the format.
pub(super) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page of metrics. Values of labels are plain words (developers' names: see `accounts::is_plain`), so none needs
/// escaping.
#[derive(Debug, Default)]
pub(super) struct Page(String);

impl Page {
    /// Begins a family; all of its samples follow.
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    pub(super) fn into_text(self) -> String {
        self.0
    }
}

/// Whether each sample follows the header of its family.
#[cfg(test)]
pub(super) fn is_grouped(text: &str) -> bool {
    let mut family = "";
    text.lines().all(|line| {
        if let Some(header) = line.strip_prefix("# TYPE ") {
            family = header.split(' ').next().unwrap_or_default();
        }
        line.starts_with('#') || line.split(['{', ' ']).next() == Some(family)
    })
}
