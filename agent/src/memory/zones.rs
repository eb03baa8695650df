//! The zones from which the kernel takes its own memory (thread stacks, tables, sockets). Plugged memory is movable at
//! first, so that it can be unplugged; the kernel cannot use it. So processes of a guest with many threads could be
//! killed while gigabytes are free. When these zones are short, memory that is plugged next goes to the kernel.

use std::fs;
use std::io;
use std::path::PathBuf;

const ZONEINFO: &str = "/proc/zoneinfo";
/// The largest ratio of movable memory to the kernel's memory, in per cent (admin-guide/mm/memory-hotplug.rst).
const RATIO_FILE: &str = "/sys/module/memory_hotplug/parameters/auto_movable_ratio";
/// The kernel's default.
const DEFAULT_RATIO: &str = "301";
/// No movable memory: memory that is plugged goes to the kernel.
const RATIO_IN_SHORTAGE: &str = "0";
const PAGE: u64 = 4096;
/// The zones are short when less than a quarter of their memory is obtainable. With a third, a guest that swaps to zram
/// would count as short, and the runner would squeeze the other guests for it.
const OBTAINABLE_DIVISOR: u64 = 4;

/// The sum of all zones except the movable one, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct KernelZones {
    managed: u64,
    /// Memory that is free, or that can be freed because it holds page cache or a program's memory.
    obtainable: u64,
}

impl KernelZones {
    fn parse(zoneinfo: &str) -> Self {
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

    fn are_short(self) -> bool {
        self.obtainable < self.managed / OBTAINABLE_DIVISOR
    }
}

/// Controls the zone of the memory that is plugged next.
#[derive(Debug)]
pub(super) struct Zones {
    ratio: PathBuf,
    short: bool,
}

impl Zones {
    /// # Errors
    /// The kernel has no such ratio: it was built without memory hotplug.
    pub(super) fn new() -> io::Result<Self> {
        Self::with_ratio(RATIO_FILE.into())
    }

    /// Reads the ratio, because an agent that died may have left the value of a shortage.
    fn with_ratio(ratio: PathBuf) -> io::Result<Self> {
        let short = fs::read_to_string(&ratio)?.trim() == RATIO_IN_SHORTAGE;
        Ok(Self { ratio, short })
    }

    /// Reads the zones and sets the zone of the memory that is plugged next. Returns whether the kernel is short of its
    /// own memory.
    ///
    /// # Errors
    /// The kernel's files cannot be read or written.
    pub(super) fn look(&mut self) -> io::Result<bool> {
        let short = KernelZones::parse(&fs::read_to_string(ZONEINFO)?).are_short();
        self.direct(short)?;
        Ok(short)
    }

    fn direct(&mut self, short: bool) -> io::Result<()> {
        if short != self.short {
            fs::write(&self.ratio, if short { RATIO_IN_SHORTAGE } else { DEFAULT_RATIO })?;
            self.short = short;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZONEINFO: &str = "Node 0, zone    DMA32\n  per-node stats\n      nr_inactive_anon 9000\n  pages free     100\n        \
        managed  1000\n      nr_free_pages 100\n      nr_zone_inactive_anon 10\n      nr_zone_active_anon 20\n      \
        nr_zone_inactive_file 30\n      nr_zone_active_file 40\n      nr_zone_unevictable 5\nNode 0, zone   Normal\n        \
        managed  600\n      nr_free_pages 300\nNode 0, zone  Movable\n        managed  5000\n      nr_free_pages 4000\n\
        Node 0, zone   Device\n        managed  7\n      nr_free_pages 7\n";

    #[test]
    fn the_movable_zone_does_not_count() {
        let zones = KernelZones::parse(ZONEINFO);
        assert_eq!(zones, KernelZones { managed: 1600 * PAGE, obtainable: 500 * PAGE });
        assert_eq!(KernelZones::parse(""), KernelZones::default());
    }

    #[test]
    fn shortage_ratio_of_a_dead_agent_is_reset() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let ratio = || fs::read_to_string(file.path()).unwrap();
        fs::write(file.path(), "301\n").unwrap();
        let zones = || Zones::with_ratio(file.path().into()).unwrap();
        zones().direct(true).unwrap();
        assert_eq!(ratio(), "0");
        zones().direct(true).unwrap();
        assert_eq!(ratio(), "0");
        zones().direct(false).unwrap();
        assert_eq!(ratio(), "301");
    }

    #[test]
    fn they_are_short_when_the_kernels_own_pages_fill_them() {
        for (obtainable, short) in [(0, true), (249, true), (250, false), (1000, false)] {
            assert_eq!(KernelZones { managed: 1000, obtainable }.are_short(), short, "{obtainable}");
        }
        assert!(!KernelZones::default().are_short(), "a kernel that does not tell");
    }
}
