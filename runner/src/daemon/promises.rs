//! The memory promised to the machines that run or should run.

use garret_api::runner::Desired;

use super::admission::{Demand, Promises};
use super::state::MachineRow;

/// The memory promised to those of `machines` that run or should run, including what their VMMs need. A machine that is
/// stopping keeps its memory until it has stopped. `started_mib` returns the memory with which a machine's VMM was
/// started, or 0. If the machine was configured with less since then, the larger value counts.
pub(super) fn promises<'a>(
    machines: impl IntoIterator<Item = &'a MachineRow>,
    started_mib: impl Fn(&MachineRow) -> u32,
    overhead_mib: u32,
) -> Promises {
    let should_run = |machine: &MachineRow| machine.desired == Desired::Running && !machine.removed;
    let running = machines.into_iter().filter(|machine| machine.vmm.is_some() || should_run(machine));
    let demands = running.map(|machine| demand(machine, started_mib(machine), overhead_mib));
    demands.fold(Promises::default(), |sum, demand| Promises {
        promised_mib: sum.promised_mib + demand.promised_mib + demand.vmm_mib,
        guaranteed_mib: sum.guaranteed_mib + demand.guaranteed_mib,
        machines: sum.machines + 1,
    })
}

/// The memory that one machine asks for.
pub(super) fn demand(machine: &MachineRow, started_mib: u32, overhead_mib: u32) -> Demand {
    Demand {
        promised_mib: machine.memory_mib.max(started_mib).into(),
        vmm_mib: overhead_mib.into(),
        guaranteed_mib: machine.guaranteed_mib.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::VmmId;
    use super::super::state::tests::machine;
    use super::*;

    #[test]
    fn only_what_runs_or_should_run_counts() {
        let running = MachineRow { desired: Desired::Running, vmm: None, ..machine(1) };
        let removed = MachineRow { removed: true, ..running.clone() };
        let stopped = MachineRow { desired: Desired::Stopped, ..running.clone() };
        let vmm = Some(VmmId { pid: 1, started: 1, boot_id: "b".into() });
        let stops = MachineRow { vmm: vmm.clone(), ..stopped.clone() };
        let removed_and_stops = MachineRow { vmm, ..removed.clone() };
        let sum = promises(&[running, removed, stopped, stops, removed_and_stops], |_| 0, 100);
        assert_eq!(sum, Promises { promised_mib: 3 * 612, guaranteed_mib: 3 * 256, machines: 3 });
    }

    #[test]
    fn a_running_machine_counts_what_it_was_started_with() {
        let running = MachineRow { desired: Desired::Running, ..machine(1) };
        let promised = |started_mib| promises([&running], |_| started_mib, 100).promised_mib;
        assert_eq!((promised(8192), promised(256)), (8292, 612));
    }
}
