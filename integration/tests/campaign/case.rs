//! One case: what is done, what is killed or taken away meanwhile, and when. Drawn from a seed.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

/// What the developer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Up,
    Rebuild,
    Exec,
    StopEnvironment,
    StartEnvironment,
    StopMachine,
    StartMachine,
    RemoveEnvironment,
    RemoveMachine,
}

/// Who is killed, or what is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    Daemon,
    Vmm,
    Agent,
    /// All space on the host's disk, from then on.
    Space,
}

/// Kill `delay` after the operation's event number `events`, or after the operation if it has fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub events: usize,
    pub delay: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub operation: Operation,
    pub victim: Victim,
    pub moment: Moment,
}

/// On an emulated host, events of one operation seldom lie further apart.
const DELAY_MOST_MS: u64 = 1500;

impl Case {
    /// The case with this number. The operations take turns, so that any few cases in a row have all of them.
    pub(crate) fn draw(seed: u64, number: u64) -> Self {
        let mut random = Rng::with_seed(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(number));
        let operation = TURNS[usize::try_from(number).expect("64 bits") % TURNS.len()];
        // Where the machine is stopped there is no agent yet.
        let victims = match operation {
            Operation::StartMachine => &[Victim::Daemon, Victim::Vmm, Victim::Space][..],
            _ => &[Victim::Daemon, Victim::Vmm, Victim::Agent, Victim::Space][..],
        };
        let moment = Moment {
            events: random.usize(0..=operation.events()),
            delay: Duration::from_millis(random.u64(0..DELAY_MOST_MS)),
        };
        Self { operation, victim: victims[random.usize(0..victims.len())], moment }
    }
}

/// Each operation once, in an order in which most find the machine as they need it.
pub(crate) const TURNS: [Operation; 9] = [
    Operation::Up,
    Operation::Rebuild,
    Operation::Exec,
    Operation::StopEnvironment,
    Operation::StartEnvironment,
    Operation::StopMachine,
    Operation::StartMachine,
    Operation::RemoveEnvironment,
    Operation::RemoveMachine,
];

impl Operation {
    /// About how many events it has.
    fn events(self) -> usize {
        match self {
            Self::Up | Self::Rebuild | Self::StartMachine => 6,
            Self::StartEnvironment => 3,
            Self::StopMachine => 2,
            Self::StopEnvironment | Self::RemoveMachine => 1,
            Self::Exec | Self::RemoveEnvironment => 0,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, victim, moment } = self;
        write!(f, "{operation:?}, {victim:?} gone {} ms after event {}", moment.delay.as_millis(), moment.events)
    }
}
