//! Decides how the operation on a machine ended, once its driver has nothing left to do.

use garret_api::runner::{MachinePhase, Operation, OperationKind, Outcome};
use garret_api::{Code, Problem};

use super::plan::{Goal, Vmm};
use crate::daemon::state::MachineRow;

/// The outcome of `operation` on a machine at rest; `None`: it is in progress.
pub(super) fn outcome(operation: &Operation, vmm: Vmm, goal: Goal, machine: &MachineRow) -> Option<Outcome> {
    let reason = &machine.reason;
    match (operation.kind, vmm, goal) {
        (OperationKind::Start, Vmm::Ready, Goal::Run) => Some(Outcome::Succeeded),
        (OperationKind::Start, Vmm::Absent, Goal::Run) => Some(failed(format!("the machine did not start: {reason}"))),
        // The host shuts down, or a stop could not be written.
        (OperationKind::Start, Vmm::Absent, Goal::Stop) => {
            Some(Outcome::Cancelled { reason: format!("the machine stopped: {reason}") })
        }
        (OperationKind::Stop, Vmm::Absent, Goal::Stop) if ended_badly(operation, machine) => {
            Some(failed(format!("the machine ended otherwise: {reason}")))
        }
        (OperationKind::Stop, Vmm::Absent, Goal::Stop) => Some(Outcome::Succeeded),
        _ => None,
    }
}

/// Whether it failed after the operation began.
fn ended_badly(operation: &Operation, machine: &MachineRow) -> bool {
    machine.phase == MachinePhase::Failed && machine.since * 1000 >= operation.begun_ms
}

fn failed(message: String) -> Outcome {
    Outcome::Failed { problem: Problem::new(Code::MachineEnded, message) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::state::tests::{machine, operation};

    #[test]
    fn an_operation_ends_when_its_machine_is_at_rest() {
        use OperationKind::{Remove, Start, Stop};
        let cancelled = || Outcome::Cancelled { reason: "the machine stopped: new".into() };
        let ok = || Some(Outcome::Succeeded);
        for (kind, vmm, goal, phase, ended) in [
            (Start, Vmm::Ready, Goal::Run, MachinePhase::Running, ok()),
            (
                Start,
                Vmm::Absent,
                Goal::Run,
                MachinePhase::Failed,
                Some(failed("the machine did not start: new".into())),
            ),
            (Start, Vmm::Absent, Goal::Stop, MachinePhase::Stopped, Some(cancelled())),
            (Start, Vmm::Booting, Goal::Run, MachinePhase::Starting, None),
            (Stop, Vmm::Absent, Goal::Stop, MachinePhase::Stopped, ok()),
            (
                Stop,
                Vmm::Absent,
                Goal::Stop,
                MachinePhase::Failed,
                Some(failed("the machine ended otherwise: new".into())),
            ),
            (Stop, Vmm::Ready, Goal::Run, MachinePhase::Running, None),
            (Remove, Vmm::Absent, Goal::Remove, MachinePhase::Stopped, None),
        ] {
            let machine = MachineRow { phase, ..machine(7) };
            let operation = Operation { begun_ms: machine.since * 1000, ..operation(kind) };
            assert_eq!(outcome(&operation, vmm, goal, &machine), ended, "{kind:?} {vmm:?} {goal:?} {phase:?}");
            let later = Operation { begun_ms: machine.since * 1000 + 1, ..operation };
            if kind == Stop && vmm == Vmm::Absent {
                assert_eq!(outcome(&later, vmm, goal, &machine), ok(), "it had failed before");
            }
        }
    }
}
