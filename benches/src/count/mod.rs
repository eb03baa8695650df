//! Counts on the host, beside the guest's own clock. They mean the same on a slow host.

mod kvm;
pub(crate) mod memory;
mod process;
mod trace;

use std::collections::{BTreeMap, BTreeSet};

use garret_api::vmm::DeviceMetrics;

use crate::subject::Running;
pub(crate) use process::{io_bytes, open_descriptors};
pub(crate) use trace::Tracer;

/// Counters at one moment. [`Snapshot::since`] returns the difference of two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// KVM's statistics of the machine: `exits`, `io_exits`, `mmio_exits`, `halt_exits`, `pf_taken`, ….
    pub kvm: BTreeMap<String, u64>,
    /// System calls of all its processes, while they are counted.
    pub system_calls: Option<u64>,
    /// Entries into `KVM_RUN`, while they are counted.
    pub kvm_runs: Option<u64>,
    /// Bytes that its processes read and wrote by system calls.
    pub io_bytes: u64,
    /// CPU time of its processes, including the guest, in milliseconds.
    pub cpu_ms: u64,
    /// The VMM's own counters of its devices, if it has any.
    pub devices: BTreeMap<String, DeviceMetrics>,
}

impl Snapshot {
    /// The difference between this and `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let kvm = self.kvm.iter().map(|(name, now)| {
            let then = before.kvm.get(name).copied().unwrap_or(0);
            (name.clone(), now.saturating_sub(then))
        });
        let devices = self.devices.iter().map(|(name, now)| {
            let then = before.devices.get(name).copied().unwrap_or_default();
            let difference = DeviceMetrics {
                kicks: now.kicks.saturating_sub(then.kicks),
                interrupts: now.interrupts.saturating_sub(then.interrupts),
                chains: now.chains.saturating_sub(then.chains),
                bytes: now.bytes.saturating_sub(then.bytes),
                faults: now.faults.saturating_sub(then.faults),
                host_failures: now.host_failures.saturating_sub(then.host_failures),
            };
            (name.clone(), difference)
        });
        Self {
            kvm: kvm.collect(),
            system_calls: less(self.system_calls, before.system_calls),
            kvm_runs: less(self.kvm_runs, before.kvm_runs),
            io_bytes: self.io_bytes.saturating_sub(before.io_bytes),
            cpu_ms: self.cpu_ms.saturating_sub(before.cpu_ms),
            devices: devices.collect(),
        }
    }

    /// One of KVM's statistics.
    pub(crate) fn exits(&self, name: &str) -> Option<u64> {
        self.kvm.get(name).copied()
    }
}

/// Counts of one machine. Traces count by thread, so this remembers every thread that it has seen. It misses a thread
/// that lives shorter than the time between two polls.
pub(crate) struct Counter<'a> {
    tracer: &'a Tracer,
    threads: BTreeSet<u32>,
}

impl<'a> Counter<'a> {
    /// Counts a machine that was just started.
    pub(crate) fn new(tracer: &'a Tracer) -> Self {
        Self { tracer, threads: BTreeSet::new() }
    }

    /// Looks for new threads.
    pub(crate) fn look(&mut self, running: &Running) {
        self.threads.extend(running.pids().into_iter().flat_map(process::threads));
    }

    /// Reads all counters when something is about to begin. It queries the VMM first, so that this query is not
    /// counted.
    ///
    /// # Errors
    /// The kernel's traces cannot be read, or the VMM does not answer.
    pub(crate) fn before(&mut self, running: &Running) -> anyhow::Result<Snapshot> {
        let devices = devices(running)?;
        Ok(Snapshot { devices, ..self.host_side(running)? })
    }

    /// Reads all counters when something has ended. It queries the VMM last.
    ///
    /// # Errors
    /// The kernel's traces cannot be read, or the VMM does not answer.
    pub(crate) fn after(&mut self, running: &Running) -> anyhow::Result<Snapshot> {
        let counted = self.host_side(running)?;
        Ok(Snapshot { devices: devices(running)?, ..counted })
    }

    fn host_side(&mut self, running: &Running) -> anyhow::Result<Snapshot> {
        self.look(running);
        let traced = self.tracer.counts()?;
        let sum = |counts: &BTreeMap<u32, u64>| self.threads.iter().filter_map(|thread| counts.get(thread)).sum();
        let (system_calls, kvm_runs) = traced.map(|traced| (sum(&traced.system_calls), sum(&traced.kvm_runs))).unzip();
        Ok(Snapshot {
            kvm: kvm::statistics(kvm::FOLDER.as_ref(), &self.threads)?,
            system_calls,
            kvm_runs,
            io_bytes: running.pids().into_iter().map(io_bytes).sum(),
            cpu_ms: running.pids().into_iter().map(process::cpu_ms).sum(),
            devices: BTreeMap::new(),
        })
    }

    /// When one of its threads first entered `KVM_RUN`, if that was recorded.
    ///
    /// # Errors
    /// The kernel's trace cannot be read.
    pub(crate) fn first_run_ns(&self) -> anyhow::Result<Option<u64>> {
        self.tracer.first_run_ns(&self.threads)
    }
}

fn less(now: Option<u64>, before: Option<u64>) -> Option<u64> {
    now.map(|now| now.saturating_sub(before.unwrap_or(0)))
}

fn devices(running: &Running) -> anyhow::Result<BTreeMap<String, DeviceMetrics>> {
    Ok(running.control.metrics()?.map(|metrics| metrics.devices).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(exits: u64, chains: u64) -> Snapshot {
        let device = DeviceMetrics { kicks: chains, interrupts: 1, chains, ..Default::default() };
        Snapshot {
            kvm: BTreeMap::from([("exits".into(), exits)]),
            system_calls: Some(exits * 2),
            kvm_runs: None,
            io_bytes: 10,
            cpu_ms: exits * 3,
            devices: BTreeMap::from([("fs0".into(), device)]),
        }
    }

    #[test]
    fn a_span_is_a_difference() {
        let span = snapshot(100, 50).since(&snapshot(40, 20));
        assert_eq!((span.exits("exits"), span.exits("io_exits")), (Some(60), None));
        assert_eq!((span.system_calls, span.kvm_runs, span.io_bytes, span.cpu_ms), (Some(120), None, 0, 180));
        assert_eq!((span.devices["fs0"].chains, span.devices["fs0"].interrupts), (30, 0));
        assert_eq!(snapshot(5, 5).since(&Snapshot::default()), snapshot(5, 5));
    }
}
