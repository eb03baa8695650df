//! Decides which commands are possible in which state. Pure.

use garret_api::vmm::MachineState;

use super::Command;

/// A command that is not possible now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the machine is {state}: {advice}", state = name(*.0), advice = .1)]
    State(MachineState, &'static str),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Failed(String),
}

fn name(state: MachineState) -> &'static str {
    match state {
        MachineState::Running => "running",
        MachineState::Paused => "paused",
        MachineState::Stopping => "stopping",
    }
}

/// Reading is always possible; a machine that is stopping accepts no other command. Pausing a paused machine and
/// resuming a running one succeed without effect, so that a caller may repeat a request.
pub(crate) fn admit(state: MachineState, command: &Command) -> Result<(), Refused> {
    match (state, command) {
        (_, Command::Describe(_) | Command::Metrics(_) | Command::Memory(_)) => Ok(()),
        (MachineState::Stopping, _) => Err(Refused::State(state, "it accepts only queries")),
        (MachineState::Running | MachineState::Paused, _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use MachineState::{Paused, Running, Stopping};
    use garret_api::vmm::MemoryTarget;
    use tokio::sync::oneshot::channel;

    fn commands() -> Vec<(Command, bool)> {
        vec![
            (Command::Describe(channel().0), true),
            (Command::Metrics(channel().0), true),
            (Command::Pause(channel().0), false),
            (Command::Resume(channel().0), false),
            (Command::PowerButton(channel().0), false),
            (Command::Shutdown(channel().0), false),
            (Command::Memory(channel().0), true),
            (Command::SetMemory(MemoryTarget { requested_mib: 448 }, channel().0), false),
        ]
    }

    #[test]
    fn a_stopping_machine_only_answers_questions() {
        for (command, question) in commands() {
            assert_eq!(admit(Running, &command), Ok(()), "{command:?}");
            assert_eq!(admit(Paused, &command), Ok(()), "{command:?}");
            assert_eq!(admit(Stopping, &command).is_ok(), question, "{command:?}");
        }
    }
}
