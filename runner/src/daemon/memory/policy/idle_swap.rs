//! Idle machines on a host that has promised more memory than it has. Memory that such a machine does not touch is
//! swapped out in small steps, while no client waits for the machine. What remains is the cost of an idle machine. The
//! guarantee still holds: memory that the machine touches again is swapped in and stays.

use std::time::Duration;

use super::model::MachineView;
use super::tuning::{
    IDLE_RESIDENT_MIN, IDLE_SWAP_AFTER, IDLE_SWAP_INTERVAL, IDLE_SWAP_INTERVAL_MAX, IDLE_SWAP_RESET_AFTER,
    IDLE_SWAP_STEP_MAX, IDLE_SWAP_STEP_MIN, SWAP_IN_IGNORED,
};

/// The state of one machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdleSwap {
    awake_for: Duration,
    quiet_for: Duration,
    since_step: Duration,
    interval: Duration,
    /// The largest amount that was swapped out of it.
    swapped: u64,
    /// Its first step was reported.
    reported: bool,
}

impl Default for IdleSwap {
    fn default() -> Self {
        let (awake_for, quiet_for, since_step) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        Self { awake_for, quiet_for, since_step, interval: IDLE_SWAP_INTERVAL, swapped: 0, reported: false }
    }
}

/// One order to swap out memory of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// How much to swap out, in bytes.
    pub bytes: u64,
    /// The first step since the machine became idle.
    pub first: bool,
}

impl IdleSwap {
    /// The next step, if one is due. `idle_for`: how long the machine has been idle; `room`: the swap it may use.
    pub(super) fn next_step(
        &mut self,
        machine: &MachineView,
        idle_for: Duration,
        room: u64,
        elapsed: Duration,
    ) -> Option<Step> {
        if idle_for < IDLE_SWAP_AFTER || machine.needed {
            self.skip_cycle(elapsed);
            return None;
        }
        self.awake_for = Duration::ZERO;
        self.swapped = self.swapped.max(machine.swapped);
        (self.since_step, self.quiet_for) = (self.since_step + elapsed, self.quiet_for.saturating_add(elapsed));
        if self.since_step < self.interval {
            return None;
        }
        self.since_step = Duration::ZERO;
        if self.swapped - machine.swapped > SWAP_IN_IGNORED {
            (self.interval, self.swapped) = ((self.interval * 2).min(IDLE_SWAP_INTERVAL_MAX), machine.swapped);
            self.quiet_for = Duration::ZERO;
            return None;
        }
        if self.quiet_for >= IDLE_SWAP_RESET_AFTER {
            self.interval = IDLE_SWAP_INTERVAL;
        }
        let bytes = machine.resident.saturating_sub(IDLE_RESIDENT_MIN).min(IDLE_SWAP_STEP_MAX).min(room);
        (bytes >= IDLE_SWAP_STEP_MIN).then(|| Step { bytes, first: !std::mem::replace(&mut self.reported, true) })
    }

    /// The machine is awake, or its memory is managed by another means. Memory swapped in meanwhile counts when it is
    /// idle again.
    pub(super) fn skip_cycle(&mut self, elapsed: Duration) {
        self.awake_for = self.awake_for.saturating_add(elapsed);
        self.quiet_for = self.quiet_for.saturating_add(elapsed);
        self.since_step = Duration::ZERO;
        self.reported &= self.awake_for < IDLE_SWAP_RESET_AFTER;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::testing::id;

    const MIB: u64 = 1 << 20;
    const SECOND: Duration = Duration::from_secs(1);

    fn machine(resident: u64, swapped: u64) -> MachineView {
        MachineView { resident: resident * MIB, swapped: swapped * MIB, ..MachineView::new(id(7)) }
    }

    #[test]
    fn an_idle_machine_comes_down_step_by_step_and_keeps_a_little() {
        for (room, expected) in [(1 << 40, &[(14, 32, true), (19, 22, false)][..]), (3 * MIB, &[(14, 3, true)])] {
            let mut idle_swap = IdleSwap::default();
            let (mut machine, mut room) = (machine(70, 0), room);
            let mut steps = Vec::new();
            for second in 0..200 {
                if let Some(step) = idle_swap.next_step(&machine, SECOND * second, room, SECOND) {
                    steps.push((second, step.bytes / MIB, step.first));
                    (machine.resident, machine.swapped) = (machine.resident - step.bytes, machine.swapped + step.bytes);
                    room -= step.bytes;
                }
            }
            assert_eq!(steps, expected);
        }
    }

    #[test]
    fn memory_swapped_in_again_doubles_the_interval() {
        let mut idle_swap = IdleSwap::default();
        let steps: Vec<u32> = (10..1000)
            .filter(|&second| {
                // All that is swapped out comes back within half a minute.
                let swapped = if second % 32 < 30 { 10 } else { 0 };
                idle_swap.next_step(&machine(70, swapped), SECOND * second, 1 << 40, SECOND).is_some()
            })
            .collect();
        // Without the longer interval, there would be a step every 5 s.
        assert!(steps.iter().filter(|&&second| second >= 500).count() < 20, "{steps:?}");
    }

    #[test]
    fn often_awake_machine_is_rarely_swapped_and_reported_once() {
        let mut idle_swap = IdleSwap::default();
        let (mut steps, mut machine, mut idle) = (Vec::new(), machine(70, 0), 0);
        for second in 0..3600 {
            // One second of work each minute, for which all memory is swapped in.
            if second % 60 == 0 {
                (machine.resident, machine.swapped, idle) = (70 * MIB, 0, 0);
            }
            if let Some(step) = idle_swap.next_step(&machine, SECOND * idle, 1 << 40, SECOND) {
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
    fn busy_or_needed_machines_are_not_swapped() {
        let needed = MachineView { needed: true, ..machine(70, 0) };
        let idle: fn(u32) -> u32 = |second| second;
        let busy: fn(u32) -> u32 = |second| second % 10;
        for (machine, idle) in [(machine(70, 0), busy), (needed, idle)] {
            let mut idle_swap = IdleSwap::default();
            assert!(
                (0..1000).all(|second| idle_swap.next_step(&machine, SECOND * idle(second), 1 << 40, SECOND).is_none())
            );
        }
    }
}
