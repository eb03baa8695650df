//! What is promised to the machines that should run.

use garret_api::runner::Desired;

use super::admission::{Ask, Promises};
use super::state::MachineRow;

/// What is promised to those of `machines` that should run, what their VMMs need included.
pub fn promises<'a>(machines: impl IntoIterator<Item = &'a MachineRow>, overhead_mib: u32) -> Promises {
    let running = machines.into_iter().filter(|machine| machine.desired == Desired::Running && !machine.removed);
    running.fold(Promises::default(), |sum, machine| Promises {
        promised_mib: sum.promised_mib + ask(machine, overhead_mib).promised_mib,
        guaranteed_mib: sum.guaranteed_mib + u64::from(machine.guaranteed_mib),
        machines: sum.machines + 1,
    })
}

/// What one machine asks for.
pub fn ask(machine: &MachineRow, overhead_mib: u32) -> Ask {
    Ask {
        promised_mib: u64::from(machine.memory_mib) + u64::from(overhead_mib),
        guaranteed_mib: machine.guaranteed_mib.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::tests::machine;
    use super::*;

    #[test]
    fn only_what_should_run_counts() {
        let running = MachineRow { desired: Desired::Running, ..machine(1) };
        let removed = MachineRow { removed: true, ..running.clone() };
        let sum = promises(&[running.clone(), removed, machine(2), running], 100);
        assert_eq!(sum, Promises { promised_mib: 2 * 612, guaranteed_mib: 2 * 256, machines: 2 });
    }
}
