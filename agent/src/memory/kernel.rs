//! The kernel's files that the loop writes. A feature that this kernel lacks is logged once.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use super::generations::{self, Lru};
use super::policy::Reclaim;

const DEBUGFS: &str = "/sys/kernel/debug";
const LRU_GEN: &str = "/sys/kernel/debug/lru_gen";
/// The file of the top group: it reclaims from all groups, and respects their protections.
const RECLAIM: &str = "/sys/fs/cgroup/memory.reclaim";
/// Free blocks of this order and larger are reported to the host.
const REPORTED: &str = "/sys/module/page_reporting/parameters/page_reporting_order";
/// 2 MiB: memory that a busy guest frees in smaller blocks is soon in use again. Reporting it would break up the host's
/// huge pages.
const LARGE: u8 = 9;
/// 64 KiB.
const SMALL: u8 = 4;
/// The group of podman's containers.
const CONTAINERS_LOW: &str = "/sys/fs/cgroup/libpod_parent/memory.low";
/// Containers in total are protected from reclaim up to this fraction of memory.
const CONTAINERS_PART: u64 = 4;

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
        let order = if small { SMALL } else { LARGE };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_once() {
        let mut kernel = Kernel::default();
        let failed = || Err::<(), _>(io::Error::other("x"));
        assert_eq!((kernel.log_once("a", failed()), kernel.log_once("a", failed())), (None, None));
        assert_eq!(kernel.log_once("b", Ok(1)), Some(1));
        assert_eq!(kernel.told.len(), 1);
    }

    #[test]
    fn what_changed_meanwhile_is_no_failure() {
        let stale = |errno: Errno| is_stale(&errno.into());
        assert!(stale(Errno::INVAL) && stale(Errno::RANGE) && !stale(Errno::PERM));
    }
}
