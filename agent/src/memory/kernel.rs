//! The kernel's files that the loop and the sampler write. A feature that this kernel lacks is logged once.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use super::policy::Reclaim;
use super::policy::generations::{self, Lru};
use super::readings::KernelZones;
use super::tuning::{CONTAINERS_PART, REPORTED_ORDER, REPORTED_ORDER_SMALL};

const DEBUGFS: &str = "/sys/kernel/debug";
const LRU_GEN: &str = "/sys/kernel/debug/lru_gen";
/// The file of the top group: it reclaims from all groups, and respects their protections.
const RECLAIM: &str = "/sys/fs/cgroup/memory.reclaim";
/// Free blocks of this order and larger are reported to the host.
const REPORTED: &str = "/sys/module/page_reporting/parameters/page_reporting_order";
/// The group of podman's containers.
const CONTAINERS_LOW: &str = "/sys/fs/cgroup/libpod_parent/memory.low";
const ZONEINFO: &str = "/proc/zoneinfo";
/// The largest ratio of movable memory to the kernel's memory, in per cent (admin-guide/mm/memory-hotplug.rst).
const RATIO_FILE: &str = "/sys/module/memory_hotplug/parameters/auto_movable_ratio";
/// The kernel's default.
const DEFAULT_RATIO: &str = "301";
/// No movable memory: memory that is plugged goes to the kernel.
const RATIO_IN_SHORTAGE: &str = "0";

/// The kernel files of the loop.
#[derive(Default)]
pub(super) struct Kernel {
    told: BTreeSet<&'static str>,
    /// The `total` from which the containers' `memory.low` was computed.
    protected: u64,
    /// The smallest order that is reported, once it was set.
    reported: Option<u8>,
}

impl Kernel {
    /// Mounts debugfs, for root only, if it is not mounted yet.
    pub(super) fn new() -> Self {
        let mut kernel = Self::default();
        if !Path::new(LRU_GEN).exists() {
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            let mounted = mount("debugfs", DEBUGFS, "debugfs", flags, c"mode=0700").map_err(io::Error::from);
            kernel.log_once("no debugfs", mounted);
        }
        kernel
    }

    /// Logs a failure the first time it occurs.
    pub(super) fn log_once<T>(&mut self, what: &'static str, result: io::Result<T>) -> Option<T> {
        if let Err(error) = &result
            && self.told.insert(what)
        {
            tracing::warn!("memory: {what}: {error}");
        }
        result.ok()
    }

    /// The generations; `None` if the kernel does not report them.
    pub(super) fn lrus(&mut self) -> Option<Vec<Lru>> {
        let text =
            self.log_once("ages are not known, page cache is taken a little at a time", fs::read_to_string(LRU_GEN));
        text.map(|text| generations::parse(&text))
    }

    /// Writes a command to the generations. The group may have been removed, or the generation evicted, since they were
    /// read.
    pub(super) fn command(&mut self, command: &str) {
        let result = match fs::write(LRU_GEN, command) {
            Err(error) if is_stale(&error) => Ok(()),
            result => result,
        };
        self.log_once("a command to lru_gen", result);
    }

    /// Reclaims from all groups; returns whether more may be reclaimable. It is no error if less was reclaimed than
    /// requested.
    pub(super) fn reclaim(&mut self, Reclaim { bytes, anon }: Reclaim) -> bool {
        let swappiness = if anon { "" } else { " swappiness=0" };
        let result = match fs::write(RECLAIM, format!("{bytes}{swappiness}")) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::AGAIN) => return false,
            result => result,
        };
        self.log_once("memory.reclaim", result).is_some()
    }

    /// Drops cached names and attributes of files that no process uses. Page cache stays.
    pub(super) fn drop_slab(&mut self) {
        let result = fs::write("/proc/sys/vm/drop_caches", "2");
        self.log_once("drop_caches", result);
    }

    /// Moves used pages together, so that free memory is in large blocks.
    pub(super) fn compact(&mut self) {
        let result = fs::write("/proc/sys/vm/compact_memory", "1");
        self.log_once("compact_memory", result);
    }

    /// Sets whether small free blocks are reported as well, or only large ones.
    pub(super) fn report_small(&mut self, small: bool) {
        let order = if small { REPORTED_ORDER_SMALL } else { REPORTED_ORDER };
        if self.reported.replace(order) != Some(order) {
            let result = fs::write(REPORTED, order.to_string());
            self.log_once("free page reporting", result);
        }
    }

    /// Updates the containers' protection as memory grows. Does nothing before the first container exists.
    pub(super) fn protect_containers(&mut self, total: u64) {
        if self.protected == total || !Path::new(CONTAINERS_LOW).exists() {
            return;
        }
        self.protected = total;
        let result = fs::write(CONTAINERS_LOW, (total / CONTAINERS_PART).to_string());
        self.log_once("memory.low of containers", result);
    }
}

fn is_stale(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::RANGE | Errno::INTR))
}

/// Controls the zone of the memory that is plugged next.
///
/// Plugged memory is movable at first, so that it can be unplugged; the kernel cannot use it for itself. So processes of
/// a guest with many threads could be killed while gigabytes are free. When the kernel's own zones are short, memory
/// that is plugged next goes to the kernel.
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

    #[test]
    fn a_repeated_failure_is_logged_once() {
        let mut kernel = Kernel::default();
        let failed = || Err::<(), _>(io::Error::other("x"));
        assert_eq!((kernel.log_once("a", failed()), kernel.log_once("a", failed())), (None, None));
        assert_eq!(kernel.log_once("b", Ok(1)), Some(1));
        assert_eq!(kernel.told.len(), 1);
    }

    #[test]
    fn a_stale_generation_is_no_failure() {
        let stale = |errno: Errno| is_stale(&errno.into());
        assert!(stale(Errno::INVAL) && stale(Errno::RANGE) && !stale(Errno::PERM));
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
}
