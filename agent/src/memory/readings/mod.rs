//! Reads `/proc`. A missing line counts as 0.

use std::fs;
use std::io;
use std::time::Duration;

use garret_api::agent::Pressure;

use super::procfs::{parse_meminfo, parse_pressure};
use super::tuning::{OBTAINABLE_PART, PAGE, REPORTED_ORDER};

/// `/proc/meminfo`, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Meminfo {
    /// Memory that the kernel manages.
    pub total: u64,
    /// Unused.
    pub free: u64,
    /// Memory that a program could get without swapping.
    pub available: u64,
    pub swap_total: u64,
    /// Unused swap.
    pub swap_free: u64,
    /// Page cache that was not used recently, as a kernel without generations counts it.
    pub inactive_file: u64,
    /// The kernel's own caches that can be dropped: names and attributes of files.
    pub slab: u64,
}

impl Meminfo {
    /// Memory in use, page cache included, as the host sees it.
    pub(super) fn in_use(&self) -> u64 {
        self.total.saturating_sub(self.free)
    }
}

/// `/proc/vmstat`, in pages and counts since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Vmstat {
    /// Pages that were read back after their eviction.
    pub refaults: u64,
    /// Pages evicted.
    pub evicted: u64,
    /// Processes killed for lack of memory, including kills for a control group's own limit.
    pub oom_kills: u64,
}

/// The kernel's counters, each since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Counters {
    /// Time in which at least one task waited for memory; `None` if the kernel does not report it.
    pub memory_stall: Option<Duration>,
    /// The same for tasks that waited for a CPU.
    pub cpu_stall: Option<Duration>,
    /// Time in which the CPUs were used or waited for a disk, summed over all CPUs.
    pub busy: Duration,
    /// Pages that were read back after their eviction.
    pub refaults: u64,
}

/// Reads `/proc/meminfo`.
pub(super) fn meminfo() -> io::Result<Meminfo> {
    let figures = parse_meminfo(&fs::read_to_string("/proc/meminfo")?);
    let figure = |name: &str| figures.get(name).copied().unwrap_or_default();
    Ok(Meminfo {
        total: figure("MemTotal"),
        free: figure("MemFree"),
        available: figure("MemAvailable"),
        swap_total: figure("SwapTotal"),
        swap_free: figure("SwapFree"),
        inactive_file: figure("Inactive(file)"),
        slab: figure("SReclaimable"),
    })
}

/// Reads `/proc/vmstat`.
pub(super) fn vmstat() -> io::Result<Vmstat> {
    Ok(parse_vmstat(&fs::read_to_string("/proc/vmstat")?))
}

/// Memory pressure; `None` if the kernel does not report it (built without, or `psi=0`).
pub(super) fn memory_pressure() -> Option<Pressure> {
    pressure("memory")
}

/// The counters from which a load is computed.
pub(super) fn counters(memory: Option<Pressure>, vmstat: Vmstat) -> io::Result<Counters> {
    let stall = |pressure: Pressure| Duration::from_micros(pressure.some_total_us);
    let busy = parse_busy(&fs::read_to_string("/proc/stat")?, rustix::param::clock_ticks_per_second());
    let cpu = pressure("cpu").map(stall);
    Ok(Counters { memory_stall: memory.map(stall), cpu_stall: cpu, busy, refaults: vmstat.refaults })
}

fn pressure(resource: &str) -> Option<Pressure> {
    fs::read_to_string(format!("/proc/pressure/{resource}")).ok().map(|text| parse_pressure(&text))
}

fn parse_vmstat(text: &str) -> Vmstat {
    let mut vmstat = Vmstat::default();
    for (name, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        let figure = match name {
            "workingset_refault_anon" | "workingset_refault_file" => &mut vmstat.refaults,
            "pgsteal_anon" | "pgsteal_file" => &mut vmstat.evicted,
            "oom_kill" => &mut vmstat.oom_kills,
            _ => continue,
        };
        *figure = figure.saturating_add(value.parse().unwrap_or_default());
    }
    vmstat
}

/// The first line of `/proc/stat`: ticks of all CPUs as user, nice, system, idle, iowait, irq, softirq, steal; later
/// fields are already included in these. A task that waits for a disk counts as busy.
fn parse_busy(text: &str, ticks_per_second: u64) -> Duration {
    let line = text.lines().next().unwrap_or_default();
    let ticks = line.split_whitespace().skip(1).take(8).enumerate().filter(|(column, _)| *column != 3);
    let ticks = ticks.fold(0u64, |sum, (_, ticks)| sum.saturating_add(ticks.parse().unwrap_or_default()));
    Duration::from_millis(ticks.saturating_mul(1000) / ticks_per_second.max(1))
}

/// Bytes that are free in blocks smaller than 2 MiB, from the text of `/proc/buddyinfo`: for each zone, the number of
/// blocks of 1, 2, 4 … pages.
pub(super) fn fragmented_bytes(text: &str) -> u64 {
    let zone = |line: &str| -> Option<u64> {
        let (_, counts) = line.split_once("zone")?;
        let counts = counts.split_whitespace().skip(1).take(REPORTED_ORDER.into()).enumerate();
        let bytes = counts.map(|(order, count)| count.parse().unwrap_or(0u64).saturating_mul(PAGE << order));
        Some(bytes.fold(0, u64::saturating_add))
    };
    text.lines().filter_map(zone).fold(0, u64::saturating_add)
}

/// The zones from which the kernel takes its own memory (thread stacks, tables, sockets): the sum of all zones except the
/// movable one, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KernelZones {
    managed: u64,
    /// Memory that is free, or that can be freed because it holds page cache or a program's memory.
    obtainable: u64,
}

impl KernelZones {
    pub(super) fn parse(zoneinfo: &str) -> Self {
        let mut zones = Self::default();
        let mut counts = false;
        for line in zoneinfo.lines() {
            let mut words = line.split_ascii_whitespace();
            let (name, value) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let bytes = || value.parse::<u64>().unwrap_or(0).saturating_mul(PAGE);
            match name {
                "Node" => counts = !line.ends_with("Movable") && !line.ends_with("Device"),
                "managed" if counts => zones.managed += bytes(),
                "nr_free_pages"
                | "nr_zone_inactive_anon"
                | "nr_zone_active_anon"
                | "nr_zone_inactive_file"
                | "nr_zone_active_file"
                    if counts =>
                {
                    zones.obtainable += bytes();
                }
                _ => {}
            }
        }
        zones
    }

    pub(super) fn are_short(self) -> bool {
        self.obtainable < self.managed / OBTAINABLE_PART
    }
}

#[cfg(test)]
mod tests;
