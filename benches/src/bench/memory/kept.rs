//! Applies the runner's memory policy to an idle machine on an overcommitted host. The policy also sees a second
//! machine that does not exist, with a promise as large as the host's memory. Only orders to swap memory out are
//! carried out: such a host gives no cause for others.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use garret::policy::{History, MachineView, Order, cgroup, decide, measure_host};
use garret_api::MachineId;
use rustix::process::getpid;

/// The time between two decisions of the policy.
const EVERY: Duration = Duration::from_secs(1);
/// The mount point of control groups.
const ROOT: &str = "/sys/fs/cgroup";
/// A control group like the runner's, and the policy's history of the machine in it.
pub(super) struct Kept {
    machine: MachineId,
    /// The machine that exists on paper only.
    paper: MachineId,
    history: History,
    looked: Option<(Instant, Duration)>,
}

impl Kept {
    /// Creates the group. `None` on a host without swap.
    ///
    /// # Errors
    /// The host has no control groups (v2), or rejects one.
    pub(super) fn new() -> anyhow::Result<Option<Self>> {
        if measure_host(0)?.swap_total == 0 {
            return Ok(None);
        }
        cgroup::prepare()?;
        let (machine, paper) = (format!("bench-{}", getpid()).parse()?, "paper".parse()?);
        cgroup::create(machine, u64::MAX)?;
        Ok(Some(Self { machine, paper, history: History::default(), looked: None }))
    }

    /// Starts a machine in the group. Memory stays charged to the group in which it was allocated, so the processes
    /// must start there. This process moves into the group for that time.
    ///
    /// # Errors
    /// `start` fails, or the kernel refuses.
    pub(super) fn start<T>(&self, start: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).context("no control group (v2)")?;
        enter(&cgroup::path(self.machine))?;
        let started = start();
        enter(Path::new(&format!("{ROOT}{own}")))?;
        started
    }

    /// Once a second, asks the policy and carries out its order.
    ///
    /// # Errors
    /// The machine has ended, or the kernel refuses.
    pub(super) fn look(&mut self, promised: u64) -> anyhow::Result<()> {
        let usage = cgroup::usage(self.machine)?;
        let now = Instant::now();
        let Some((then, cpu)) = self.looked else {
            self.looked = Some((now, usage.cpu));
            return Ok(());
        };
        let elapsed = now - then;
        if elapsed < EVERY {
            return Ok(());
        }
        self.looked = Some((now, usage.cpu));
        let host = measure_host(0)?;
        let machine = MachineView {
            cpus: usage.cpu.saturating_sub(cpu).div_duration_f64(elapsed),
            resident: usage.resident,
            swapped: usage.swapped,
            ..sizes(self.machine, promised)
        };
        let paper = sizes(self.paper, host.total);
        for order in decide(&mut self.history, &host, &[machine, paper], elapsed).orders {
            if let Order::Swap { id, bytes } = order
                && id == self.machine
            {
                cgroup::reclaim(id, bytes)?;
            }
        }
        Ok(())
    }

    /// Bytes that are swapped out.
    ///
    /// # Errors
    /// The machine has ended.
    pub(super) fn swapped(&self) -> anyhow::Result<u64> {
        Ok(cgroup::usage(self.machine)?.swapped)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // An empty group that cannot be removed now disappears with the host.
        let _ = cgroup::remove(self.machine);
    }
}

fn enter(group: &Path) -> anyhow::Result<()> {
    let procs = group.join("cgroup.procs");
    fs::write(&procs, "0").with_context(|| format!("cannot write {}", procs.display()))
}

/// A machine that may have all of its promise, as far as the host has the memory.
fn sizes(id: MachineId, promised: u64) -> MachineView {
    let (boot, limit, plugged) = (promised, promised, promised);
    MachineView { promised, weight: 100, boot, limit, plugged, ..MachineView::new(id) }
}
