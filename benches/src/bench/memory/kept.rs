//! What garret's runner does for a machine that idles on a host that has promised more than it has: its policy looks at
//! this machine, and at one that exists on paper only and to which as much is promised as the host has. Of the policy's
//! orders those to swap something out are carried out; for others a host on which a bench runs has no cause.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use garret::policy::{History, MachineView, Order, cgroup, decide, measure_host};
use garret_api::MachineId;
use rustix::process::getpid;

/// The time between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// Where control groups are.
const ROOT: &str = "/sys/fs/cgroup";
/// A control group like the runner's, and what the policy knows of the machine in it.
pub(super) struct Kept {
    machine: MachineId,
    /// The machine that exists on paper only.
    paper: MachineId,
    history: History,
    looked: Option<(Instant, Duration)>,
}

impl Kept {
    /// Makes the group; nothing on a host without swap, to which nothing can be swapped out.
    ///
    /// # Errors
    /// The host has no control groups (v2), or refuses one.
    pub(super) fn new() -> anyhow::Result<Option<Self>> {
        if measure_host(0)?.swap_total == 0 {
            return Ok(None);
        }
        cgroup::prepare()?;
        let (machine, paper) = (format!("bench-{}", getpid()).parse()?, "paper".parse()?);
        cgroup::create(machine, u64::MAX)?;
        Ok(Some(Self { machine, paper, history: History::default(), looked: None }))
    }

    /// Starts something in the group. Memory stays with the group in which it was taken, so its processes have to be born
    /// there: this one goes into the group for as long.
    ///
    /// # Errors
    /// As `start`, or the kernel refuses.
    pub(super) fn start<T>(&self, start: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).context("no control group (v2)")?;
        enter(&cgroup::path(self.machine))?;
        let started = start();
        enter(Path::new(&format!("{ROOT}{own}")))?;
        started
    }

    /// Looks, once a second, and does as the policy says.
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

    /// What is swapped out, in bytes.
    ///
    /// # Errors
    /// The machine has ended.
    pub(super) fn swapped(&self) -> anyhow::Result<u64> {
        Ok(cgroup::usage(self.machine)?.swapped)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // What is left of it is empty, and goes with the host if not now.
        let _ = cgroup::remove(self.machine);
    }
}

fn enter(group: &Path) -> anyhow::Result<()> {
    let procs = group.join("cgroup.procs");
    fs::write(&procs, "0").with_context(|| format!("cannot write {}", procs.display()))
}

/// A machine that may have all it was promised, as far as the host has it.
fn sizes(id: MachineId, promised: u64) -> MachineView {
    let (boot, limit, plugged) = (promised, promised, promised);
    MachineView { promised, weight: 100, boot, limit, plugged, ..MachineView::new(id) }
}
