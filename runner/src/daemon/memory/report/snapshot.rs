//! The result of the last cycle, for requests and metrics.

use std::collections::BTreeMap;

use garret_api::MachineId;
use garret_api::runner::{HostMemory, MachineMemory, Means, Top};

use crate::daemon::admission::Promises;
use crate::daemon::memory::policy::{Decision, HostView, MachineView};

/// The result of the last cycle.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Snapshot {
    /// The host's figures.
    pub host: HostMemory,
    /// The running machines with their owners' uids, ordered by developer.
    pub machines: Vec<(u32, MachineMemory)>,
    /// For each machine, how often its guest's reports broke off or could not be parsed.
    pub broken_reports: BTreeMap<String, u64>,
    /// How often memory was taken from each machine by each means since the daemon started.
    pub squeezes: BTreeMap<(String, Means), u64>,
}

impl Snapshot {
    /// The part of the snapshot for a user that may see the machines of these uids.
    pub(crate) fn top(&self, may: impl Fn(u32) -> bool) -> Top {
        let machines = self.machines.iter().filter(|(uid, _)| may(*uid)).map(|(_, machine)| machine.clone()).collect();
        Top { host: self.host.clone(), machines }
    }
}

/// The host's figures. `promises` are in MiB.
pub(crate) fn host_memory(host: &HostView, promises: &Promises, machines: &[MachineView]) -> HostMemory {
    let promised = promises.promised_mib << 20;
    HostMemory {
        total: host.total,
        available: host.available,
        swap_total: host.swap_total,
        swap_free: host.swap_free,
        capacity: host.total.saturating_sub(host.reserve),
        promised,
        guaranteed: promises.guaranteed_mib << 20,
        resident: machines.iter().map(|machine| machine.resident).sum(),
        overcommit: if host.total > 0 { promised as f64 / host.total as f64 } else { 0.0 },
        pressure_some: host.pressure_some,
        pressure_full: host.pressure_full,
    }
}

/// One machine's figures.
pub(crate) fn machine_memory(
    developer: &str,
    oom_kills: u64,
    view: &MachineView,
    decision: &Decision,
) -> MachineMemory {
    let decided = |what: &BTreeMap<MachineId, u64>| what.get(&view.id).copied().unwrap_or(view.resident);
    MachineMemory {
        developer: developer.into(),
        promised: view.promised,
        guaranteed: view.guaranteed,
        weight: view.weight,
        limit: view.limit,
        target: decided(&decision.targets),
        resident: view.resident,
        swapped: view.swapped,
        working_set: decided(&decision.working_sets),
        pressure_some: view.guest.as_ref().and_then(|guest| guest.pressure_some),
        squeezed: decision.squeezed.get(&view.id).copied().filter(|means| *means != Means::Released),
        oom_kills,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::testing::id;

    #[test]
    fn each_sees_their_own_and_all_see_the_host() {
        let view = MachineView { promised: 4 << 30, resident: 1 << 30, ..MachineView::new(id(7)) };
        let decision = Decision {
            targets: [(id(7), 512 << 20)].into(),
            squeezed: [(id(7), Means::Guest)].into(),
            ..Decision::default()
        };
        let host = HostView { total: 8 << 30, reserve: 1 << 30, ..HostView::default() };
        let promises = Promises { promised_mib: 16 << 10, guaranteed_mib: 1 << 10, machines: 2 };
        let snapshot = Snapshot {
            host: host_memory(&host, &promises, &[view]),
            machines: vec![(7, machine_memory("alice", 3, &view, &decision)), (8, MachineMemory::default())],
            ..Snapshot::default()
        };
        assert_eq!((snapshot.host.overcommit, snapshot.host.capacity, snapshot.host.resident), (2.0, 7 << 30, 1 << 30));
        let top = snapshot.top(|uid| uid == 7);
        let [alice] = &top.machines[..] else { panic!("{top:?}") };
        assert_eq!((alice.target, alice.working_set, alice.squeezed), (512 << 20, 1 << 30, Some(Means::Guest)));
        assert_eq!(top.host, snapshot.host);
    }
}
