//! The host of a run: its numbers mean nothing without it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::process::run;

/// The facts about the host, in every record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Host {
    /// Whether times on it are meaningful.
    pub platform: Platform,
    /// Whether the emulator counts instructions: one instruction is then one virtual nanosecond.
    pub icount: bool,
    /// The kernel's release.
    pub kernel: String,
    /// The processor's name.
    pub cpu: String,
    /// The number of processors.
    pub cpus: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Versions of the programs that were measured.
    pub versions: BTreeMap<String, String>,
    /// The commit garret was built from.
    pub commit: String,
    /// When the run began, in UTC.
    pub date: String,
}

/// The platform that the host runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Platform {
    /// Hardware. Times are meaningful.
    #[default]
    Native,
    /// A virtual machine with nested virtualization. Exits cost more than on hardware.
    Nested,
    /// An emulated processor. Counts and ratios are meaningful, times are not.
    Emulated,
}

impl Platform {
    /// A warning about times measured there; `None` for hardware.
    pub(crate) fn caution(self) -> Option<&'static str> {
        match self {
            Platform::Native => None,
            Platform::Nested => Some("nested virtualization"),
            Platform::Emulated => Some("emulated"),
        }
    }
}

/// Detects this host's facts. `GARRET_EMULATED` (0 or 1) overrides the processor's flags.
pub(crate) fn look(commit: &str, icount: bool, programs: &[(&str, &Path)]) -> Host {
    let cpuinfo = read("/proc/cpuinfo");
    Host {
        platform: platform(&cpuinfo, std::env::var("GARRET_EMULATED").ok().as_deref()),
        icount,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        cpu: field(&cpuinfo, "model name").unwrap_or("unknown").to_owned(),
        cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
        memory_mib: memory_mib(&read("/proc/meminfo")),
        versions: programs.iter().map(|(name, path)| ((*name).to_owned(), version(path))).collect(),
        commit: commit.to_owned(),
        date: run("date", &["-u", "+%FT%TZ"]).unwrap_or_default().trim().to_owned(),
    }
}

fn platform(cpuinfo: &str, said: Option<&str>) -> Platform {
    match said {
        Some("1") => return Platform::Emulated,
        Some("0") => return Platform::Native,
        _ => {}
    }
    let emulated = field(cpuinfo, "model name").is_some_and(|name| name.contains("TCG"));
    let guest = field(cpuinfo, "flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"));
    match (emulated, guest) {
        (true, _) => Platform::Emulated,
        (false, true) => Platform::Nested,
        (false, false) => Platform::Native,
    }
}

/// The value of the first `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(key, value)| (key.trim(), value.trim())).find(|(key, _)| *key == name).map(|(_, value)| value)
}

fn memory_mib(meminfo: &str) -> u64 {
    let kib = field(meminfo, "MemTotal").and_then(|value| value.split(' ').next()?.parse::<u64>().ok());
    kib.unwrap_or(0) >> 10
}

/// The version that a program prints; empty if it cannot be run.
fn version(program: &Path) -> String {
    let said = run(&program.to_string_lossy(), &["--version"]).unwrap_or_default();
    said.lines().next().unwrap_or_default().trim().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCG: &str = "processor\t: 0\nmodel name\t: QEMU TCG CPU version 2.5+\nflags\t\t: fpu svm hypervisor npt\n";
    const CLOUD: &str = "processor\t: 0\nmodel name\t: AMD EPYC 7R13\nflags\t\t: fpu svm hypervisor npt\n";
    const METAL: &str = "processor\t: 0\nmodel name\t: AMD EPYC 7R13\nflags\t\t: fpu svm npt\n";

    #[test]
    fn the_processor_tells_what_it_is() {
        for (cpuinfo, said, expected) in [
            (TCG, None, Platform::Emulated),
            (CLOUD, None, Platform::Nested),
            (METAL, None, Platform::Native),
            (METAL, Some("1"), Platform::Emulated),
            (TCG, Some("0"), Platform::Native),
            (TCG, Some(""), Platform::Emulated),
        ] {
            assert_eq!(platform(cpuinfo, said), expected, "{cpuinfo} {said:?}");
        }
    }

    #[test]
    fn facts_of_this_machine() {
        let host = look("abc", false, &[("shell", Path::new("/bin/bash")), ("none", Path::new("/no such"))]);
        assert!(host.cpus > 0 && host.memory_mib > 0 && !host.kernel.is_empty(), "{host:?}");
        assert!(host.versions["shell"].contains("bash") && host.versions["none"].is_empty(), "{host:?}");
        assert_eq!((host.date.len(), memory_mib("MemTotal:    2048 kB")), (20, 2));
    }
}
