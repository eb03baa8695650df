//! Whether a machine can be entered now.

use garret_api::Code;
use garret_api::runner::MachinePhase;

use super::Refusal;
use crate::daemon::state::MachineRow;

/// Rejects requests to a machine that does not run.
pub(super) fn require_running(machine: &MachineRow) -> Result<(), Refusal> {
    match machine.phase {
        MachinePhase::Running => Ok(()),
        MachinePhase::Starting => {
            Err(Refusal::new(Code::Unavailable, "the machine is still starting: try again in a moment"))
        }
        _ => Err(Refusal::new(
            Code::Conflict,
            format!("the machine does not run ({}): `garret start` starts it", machine.reason),
        )),
    }
}
