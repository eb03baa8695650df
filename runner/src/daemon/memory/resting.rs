//! Idle machines on a host that has promised more memory than it has. Memory that such a machine does not touch is
//! swapped out in small steps, while no client waits for the machine. What remains is the cost of an idle machine. The
//! guarantee still holds: memory that the machine touches again is swapped in and stays.

use std::time::Duration;

use super::model::MachineView;

const MIB: u64 = 1 << 20;
/// How long a machine must have been idle. No client is connected by then, so no client notices.
const AFTER: Duration = Duration::from_secs(10);
/// The interval between two steps, at first.
const EVERY: Duration = Duration::from_secs(5);
/// The longest interval, after much memory was swapped in again.
const EVERY_MOST: Duration = Duration::from_secs(640);
/// How much is swapped out in one step. The first steps yield little, because the kernel must first find untouched
/// memory.
const STEP: u64 = 32 * MIB;
/// How much stays in memory: an idle guest's kernel, agent and timers touch about as much.
const LEFT: u64 = 16 * MIB;
/// If no more than this is swapped in again, it is ignored. More means that the machine was not really idle, or that it
/// wakes now and then.
const BACK: u64 = 2 * MIB;
/// A smaller amount is not worth an order.
const LEAST: u64 = MIB;
/// After the machine has been awake for this long, its next step is reported again. After no memory was swapped in for
/// this long, the interval returns to [`EVERY`].
const FORGET: Duration = Duration::from_secs(600);

/// The state of one machine.
#[derive(Clone, Copy, Debug)]
pub struct Resting {
    awake_for: Duration,
    quiet_for: Duration,
    since_step: Duration,
    every: Duration,
    /// The largest amount that was swapped out of it.
    swapped: u64,
    /// Its first step was reported.
    told: bool,
}

impl Default for Resting {
    fn default() -> Self {
        let (awake_for, quiet_for, since_step) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        Self { awake_for, quiet_for, since_step, every: EVERY, swapped: 0, told: false }
    }
}

/// One order to swap out memory of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// How much to swap out, in bytes.
    pub bytes: u64,
    /// The first step since the machine became idle.
    pub first: bool,
}

impl Resting {
    /// The next step, if one is due. `idle_for`: how long the machine has been idle; `room`: the swap it may use.
    pub fn look(&mut self, machine: &MachineView, idle_for: Duration, room: u64, elapsed: Duration) -> Option<Step> {
        if idle_for < AFTER || machine.needed {
            self.wake(elapsed);
            return None;
        }
        self.awake_for = Duration::ZERO;
        self.swapped = self.swapped.max(machine.swapped);
        (self.since_step, self.quiet_for) = (self.since_step + elapsed, self.quiet_for.saturating_add(elapsed));
        if self.since_step < self.every {
            return None;
        }
        self.since_step = Duration::ZERO;
        if self.swapped - machine.swapped > BACK {
            (self.every, self.swapped) = ((self.every * 2).min(EVERY_MOST), machine.swapped);
            self.quiet_for = Duration::ZERO;
            return None;
        }
        if self.quiet_for >= FORGET {
            self.every = EVERY;
        }
        let bytes = machine.resident.saturating_sub(LEFT).min(STEP).min(room);
        (bytes >= LEAST).then(|| Step { bytes, first: !std::mem::replace(&mut self.told, true) })
    }

    /// The machine is awake, or its memory is managed by another means. Memory swapped in meanwhile counts when it is
    /// idle again.
    pub fn wake(&mut self, elapsed: Duration) {
        self.awake_for = self.awake_for.saturating_add(elapsed);
        self.quiet_for = self.quiet_for.saturating_add(elapsed);
        self.since_step = Duration::ZERO;
        self.told &= self.awake_for < FORGET;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn machine(resident: u64, swapped: u64) -> MachineView {
        MachineView { resident: resident * MIB, swapped: swapped * MIB, ..MachineView::default() }
    }

    #[test]
    fn an_idle_machine_comes_down_step_by_step_and_keeps_a_little() {
        for (room, expected) in [(1 << 40, &[(14, 32, true), (19, 22, false)][..]), (3 * MIB, &[(14, 3, true)])] {
            let mut resting = Resting::default();
            let (mut machine, mut room) = (machine(70, 0), room);
            let mut steps = Vec::new();
            for second in 0..200 {
                if let Some(step) = resting.look(&machine, SECOND * second, room, SECOND) {
                    steps.push((second, step.bytes / MIB, step.first));
                    (machine.resident, machine.swapped) = (machine.resident - step.bytes, machine.swapped + step.bytes);
                    room -= step.bytes;
                }
            }
            assert_eq!(steps, expected);
        }
    }

    #[test]
    fn what_comes_back_makes_it_wait_longer_each_time() {
        let mut resting = Resting::default();
        let steps: Vec<u32> = (10..1000)
            .filter(|&second| {
                // All that is swapped out comes back within half a minute.
                let swapped = if second % 32 < 30 { 10 } else { 0 };
                resting.look(&machine(70, swapped), SECOND * second, 1 << 40, SECOND).is_some()
            })
            .collect();
        // Without the longer interval, there would be a step every 5 s.
        assert!(steps.iter().filter(|&&second| second >= 500).count() < 20, "{steps:?}");
    }

    #[test]
    fn who_wakes_again_and_again_is_mostly_left_alone_and_told_once() {
        let mut resting = Resting::default();
        let (mut steps, mut machine, mut idle) = (Vec::new(), machine(70, 0), 0);
        for second in 0..3600 {
            // One second of work each minute, for which all memory is swapped in.
            if second % 60 == 0 {
                (machine.resident, machine.swapped, idle) = (70 * MIB, 0, 0);
            }
            if let Some(step) = resting.look(&machine, SECOND * idle, 1 << 40, SECOND) {
                steps.push((second, step.first));
                (machine.resident, machine.swapped) = (machine.resident - step.bytes, machine.swapped + step.bytes);
            }
            idle += 1;
        }
        assert_eq!(steps.iter().filter(|(_, first)| *first).count(), 1, "{steps:?}");
        // Without the longer interval, there would be two steps per minute.
        assert!(steps.len() < 30, "{steps:?}");
    }

    #[test]
    fn machines_awake_or_awaited_are_left_alone() {
        let needed = MachineView { needed: true, ..machine(70, 0) };
        let idle: fn(u32) -> u32 = |second| second;
        let busy: fn(u32) -> u32 = |second| second % 10;
        for (machine, idle) in [(machine(70, 0), busy), (needed, idle)] {
            let mut resting = Resting::default();
            assert!((0..1000).all(|second| resting.look(&machine, SECOND * idle(second), 1 << 40, SECOND).is_none()));
        }
    }
}
