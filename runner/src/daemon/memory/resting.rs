//! A machine in which nothing happens, on a host that has promised more than it has: what it does not touch goes to the
//! swap, a little at a time, while nobody waits for that. What is left is what an idle machine costs. Its guarantee is
//! not broken by that: what it wants back comes back, and stays.

use std::time::Duration;

use super::model::MachineView;

const MIB: u64 = 1 << 20;
/// How long nothing must have happened: nobody is connected, so nobody notices.
const AFTER: Duration = Duration::from_secs(10);
/// Between two steps, at first.
const EVERY: Duration = Duration::from_secs(5);
/// The same at most, after much has come back.
const EVERY_MOST: Duration = Duration::from_secs(640);
/// What is swapped out in a step. The first steps yield little: the kernel begins by looking for what is not touched.
const STEP: u64 = 32 * MIB;
/// What is left to it: an idle guest's kernel, agent and timers touch about as much.
const LEFT: u64 = 16 * MIB;
/// So much may come back unnoticed. More means that it was not as idle as it seemed.
const BACK: u64 = 2 * MIB;
/// Less is not worth an order.
const LEAST: u64 = MIB;

/// What is remembered of one machine.
#[derive(Clone, Copy, Debug)]
pub struct Resting {
    since_step: Duration,
    every: Duration,
    /// The most that was swapped out of it.
    swapped: u64,
    /// It has been told.
    told: bool,
}

impl Default for Resting {
    fn default() -> Self {
        Self { since_step: Duration::ZERO, every: EVERY, swapped: 0, told: false }
    }
}

/// A step of one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What to swap out, in bytes.
    pub bytes: u64,
    /// The first since it came to rest.
    pub first: bool,
}

impl Resting {
    /// The next step, when it is time for one. `idle_for`: how long nothing has happened.
    pub fn look(&mut self, machine: &MachineView, idle_for: Duration, elapsed: Duration) -> Option<Step> {
        if idle_for < AFTER || machine.needed {
            *self = Self::default();
            return None;
        }
        self.swapped = self.swapped.max(machine.swapped);
        self.since_step += elapsed;
        if self.since_step < self.every {
            return None;
        }
        self.since_step = Duration::ZERO;
        if self.swapped - machine.swapped > BACK {
            (self.every, self.swapped) = ((self.every * 2).min(EVERY_MOST), machine.swapped);
            return None;
        }
        let bytes = machine.resident.saturating_sub(LEFT).min(STEP);
        (bytes >= LEAST).then(|| Step { bytes, first: !std::mem::replace(&mut self.told, true) })
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
        let mut resting = Resting::default();
        let mut machine = machine(70, 0);
        let mut steps = Vec::new();
        for second in 0..200 {
            if let Some(step) = resting.look(&machine, SECOND * second, SECOND) {
                steps.push((second, step.bytes / MIB, step.first));
                (machine.resident, machine.swapped) = (machine.resident - step.bytes, machine.swapped + step.bytes);
            }
        }
        assert_eq!(steps, [(14, 32, true), (19, 22, false)]);
    }

    #[test]
    fn what_comes_back_makes_it_wait_longer_each_time() {
        let mut resting = Resting::default();
        let steps: Vec<u32> = (10..1000)
            .filter(|&second| {
                // Whatever is taken comes back within half a minute.
                let swapped = if second % 32 < 30 { 10 } else { 0 };
                resting.look(&machine(70, swapped), SECOND * second, SECOND).is_some()
            })
            .collect();
        // At first each 5 s.
        assert!(steps.iter().filter(|&&second| second >= 500).count() < 5, "{steps:?}");
    }

    #[test]
    fn whoever_is_awake_or_waited_for_is_left_alone() {
        let mut resting = Resting::default();
        let needed = MachineView { needed: true, ..machine(70, 0) };
        for second in 0..1000 {
            assert_eq!(resting.look(&machine(70, 0), SECOND * (second % 10), SECOND), None);
            assert_eq!(resting.look(&needed, SECOND * second, SECOND), None);
        }
    }
}
