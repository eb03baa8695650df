//! Counts by the kernel: histograms of a tracefs instance, which the kernel fills without stopping the counted
//! processes.
//!
//! Two events are counted by thread: the start of a system call (`raw_syscalls:sys_enter`), and a vCPU's entry into
//! `KVM_RUN` (a probe on the function). The first entries into `KVM_RUN` can also be recorded with their time.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;

const TRACING: &str = "/sys/kernel/tracing";
const INSTANCE: &str = "instances/garret-bench";
const SYSTEM_CALL: &str = "events/raw_syscalls/sys_enter";
const KVM_RUN: &str = "events/garret_bench/kvm_run";
const PROBE: &str = "p:garret_bench/kvm_run kvm_arch_vcpu_ioctl_run";
/// One line for each thread that ever makes a call on the host.
const HISTOGRAM: &str = "hist:keys=common_pid:size=32768";
/// Room for the first thousands of entries.
const BUFFER_KIB: &str = "512";

/// Events by thread, since the tracer was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub system_calls: BTreeMap<u32, u64>,
    /// Entries into `KVM_RUN`.
    pub kvm_runs: BTreeMap<u32, u64>,
}

/// Counts on the whole host, until it is dropped. It slows every system call a little, so it can be switched off.
pub(crate) struct Tracer {
    instance: PathBuf,
    counting: Cell<bool>,
}

impl Tracer {
    /// Removes what an earlier run left, and prepares counting without starting it.
    ///
    /// # Errors
    /// tracefs is missing, or this process is not root.
    pub(crate) fn open() -> anyhow::Result<Self> {
        let tracing = Path::new(TRACING);
        let instance = tracing.join(INSTANCE);
        let tracer = Self { instance, counting: Cell::new(false) };
        tracer.remove();
        if !tracing.join(KVM_RUN).exists() {
            write(&tracing.join("kprobe_events"), PROBE).context("is the kvm module loaded?")?;
        }
        fs::create_dir(&tracer.instance).with_context(|| tracer.instance.display().to_string())?;
        tracer.write("trace_clock", "mono")?;
        tracer.write("options/overwrite", "0")?;
        tracer.write("buffer_size_kb", BUFFER_KIB)?;
        Ok(tracer)
    }

    /// Starts or stops counting.
    ///
    /// # Errors
    /// The kernel has no histograms.
    pub(crate) fn count(&self, on: bool) -> anyhow::Result<()> {
        if self.counting.replace(on) != on {
            let sign = if on { "" } else { "!" };
            for event in [SYSTEM_CALL, KVM_RUN] {
                self.write(&format!("{event}/trigger"), &format!("{sign}{HISTOGRAM}"))?;
            }
        }
        Ok(())
    }

    pub(crate) fn counting(&self) -> bool {
        self.counting.get()
    }

    /// The counts since counting began. They are empty while it does not count.
    ///
    /// # Errors
    /// tracefs cannot be read.
    pub(crate) fn counts(&self) -> anyhow::Result<Option<Counts>> {
        if !self.counting() {
            return Ok(None);
        }
        let histogram = |event: &str| self.read(&format!("{event}/hist")).map(|text| counts(&text));
        Ok(Some(Counts { system_calls: histogram(SYSTEM_CALL)?, kvm_runs: histogram(KVM_RUN)? }))
    }

    /// Discards the records, and starts or stops recording entries into `KVM_RUN`.
    ///
    /// # Errors
    /// tracefs cannot be written.
    pub(crate) fn record_runs(&self, on: bool) -> anyhow::Result<()> {
        let switch = format!("{KVM_RUN}/enable");
        self.write(&switch, "0")?;
        if on {
            // Opening the file for writing empties the buffer.
            fs::File::create(self.instance.join("trace")).context("trace")?;
            self.write(&switch, "1")?;
        }
        Ok(())
    }

    /// When one of `threads` first entered `KVM_RUN`.
    ///
    /// # Errors
    /// tracefs cannot be read.
    pub(crate) fn first_run_ns(&self, threads: &BTreeSet<u32>) -> anyhow::Result<Option<u64>> {
        let text = self.read("trace")?;
        let entries = text.lines().filter_map(entry);
        Ok(entries.filter(|(thread, _)| threads.contains(thread)).map(|(_, at)| at).min())
    }

    fn read(&self, name: &str) -> anyhow::Result<String> {
        let path = self.instance.join(name);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        write(&self.instance.join(name), text)
    }

    /// Triggers use the instance, and an instance uses its events.
    fn remove(&self) {
        for event in [SYSTEM_CALL, KVM_RUN] {
            let _ = self.write(&format!("{event}/enable"), "0");
            let _ = self.write(&format!("{event}/trigger"), &format!("!{HISTOGRAM}"));
        }
        let _ = fs::remove_dir(&self.instance);
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.remove();
        let _ = write(&Path::new(TRACING).join("kprobe_events"), "-:garret_bench/kvm_run");
    }
}

/// Appends. In these files each write is a command, and truncating them first would be another command.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let file = OpenOptions::new().append(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).with_context(|| format!("{text} > {}", path.display()))
}

/// `{ common_pid:       1234 } hitcount:         56`
fn counts(histogram: &str) -> BTreeMap<u32, u64> {
    let line = |line: &str| {
        let (key, count) = line.strip_prefix("{ common_pid:")?.split_once("} hitcount:")?;
        Some((key.trim().parse().ok()?, count.trim().parse().ok()?))
    };
    histogram.lines().filter_map(line).collect()
}

/// Parses `  CPU 0/KVM-1234    [001] .....   12.345678: kvm_run: (…)` to thread and nanoseconds.
fn entry(line: &str) -> Option<(u32, u64)> {
    let (task, rest) = line.split_once(" [")?;
    let thread = task.trim_end().rsplit_once('-')?.1.parse().ok()?;
    let time = rest.split_whitespace().find_map(|word| {
        let (seconds, fraction) = word.strip_suffix(':')?.split_once('.')?;
        Some((seconds.parse::<u64>().ok()?, fraction.parse::<u64>().ok()?, fraction.len()))
    });
    let (seconds, fraction, digits) = time?;
    let scale = 10u64.checked_pow(9u32.checked_sub(digits as u32)?)?;
    Some((thread, seconds * 1_000_000_000 + fraction * scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_parsed() {
        let text = "# event histogram\n#\n# trigger info: hist:keys=common_pid:vals=hitcount:sort=hitcount:size=2048 \
                    [active]\n#\n\n{ common_pid:       1234 } hitcount:          5\n\
                    { common_pid:         77 } hitcount:     123456\n\nTotals:\n    Hits: 123461\n    Entries: 2\n";
        assert_eq!(counts(text), BTreeMap::from([(1234, 5), (77, 123_456)]));
        assert_eq!(counts(""), BTreeMap::new());
    }

    #[test]
    fn recorded_entries_are_parsed() {
        for (line, expected) in [
            (
                "     CPU 0/KVM-1234    [001] .....    12.345678: kvm_run: (kvm_arch_vcpu_ioctl_run+0x0)",
                Some((1234, 12_345_678_000)),
            ),
            ("           vcpu0-77      [000] d..1.   100.000001: kvm_run: (x)", Some((77, 100_000_001_000))),
            ("# tracer: nop", None),
            ("#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION", None),
        ] {
            assert_eq!(entry(line), expected, "{line}");
        }
    }
}
