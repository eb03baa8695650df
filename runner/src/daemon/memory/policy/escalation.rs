//! One machine during a shortage: how much it holds beyond its target, and by which means memory is taken from it.

use std::cmp::Ordering;
use std::time::Duration;

use garret_api::runner::Means;

use super::model::{MachineView, Order};
use super::tuning::{PAUSE_DELAY, SQUEEZE_REPEAT};

const MIB: u64 = 1 << 20;

/// A machine with its target and its working set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Assessment<'a> {
    pub machine: &'a MachineView,
    /// The memory it should hold.
    pub target: u64,
    /// The memory it uses.
    pub working_set: u64,
}

impl Assessment<'_> {
    /// The memory it holds beyond its target. A small excess counts as 0, so that noise changes nothing.
    pub(super) fn excess(&self) -> u64 {
        let excess = self.machine.resident.saturating_sub(self.target);
        if excess > self.slack() { excess } else { 0 }
    }

    fn slack(&self) -> u64 {
        (self.target / 32).clamp(16 * MIB, 128 * MIB)
    }

    /// Whether it is so far below its target that it can be released.
    pub(super) fn far_below_target(&self) -> bool {
        self.machine.resident.saturating_add(4 * self.slack()) < self.target
    }

    /// The size to which its guest should shrink. Memory that the host has swapped out is still in use for the guest.
    fn goal(&self) -> u64 {
        self.target.saturating_add(self.machine.swapped)
    }

    /// Orders machines by cold memory relative to weight, the most first; then by CPU use, the least first.
    pub(super) fn idler_first(&self, other: &Self) -> Ordering {
        let cold =
            |one: &Self| one.machine.resident.saturating_sub(one.working_set) / u64::from(one.machine.weight.max(1));
        cold(other).cmp(&cold(self)).then(self.machine.cpus.total_cmp(&other.machine.cpus))
    }
}

/// The means by which memory is taken from one machine, and since when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Escalation {
    /// The means by which memory is taken.
    pub means: Means,
    /// How long this means has been in use.
    pub since: Duration,
    /// The size to which its guest should shrink.
    goal: u64,
    /// The last request to its guest, and its age. `None`: unknown.
    asked: Option<(Option<u64>, Duration)>,
    /// How often it was paused.
    pub pauses: u32,
}

impl Escalation {
    /// The escalation of a machine that is new to this runner. If the machine is paused, an earlier runner paused it.
    pub(super) fn adopt(machine: &MachineView) -> Self {
        let means = if machine.paused { Means::Paused } else { Means::Released };
        Self { means, since: Duration::ZERO, goal: 0, asked: None, pauses: 0 }
    }

    /// Updates the escalation in the next cycle.
    pub(super) fn update(&mut self, assessment: &Assessment, elapsed: Duration) {
        self.since = self.since.saturating_add(elapsed);
        self.asked = match self.asked {
            // A guest that was silent may have lost the request.
            Some((goal, ago)) if assessment.machine.guest.is_some() => Some((goal, ago.saturating_add(elapsed))),
            _ => None,
        };
        // A client needed the machine, so the machine was resumed.
        if self.means == Means::Paused && !assessment.machine.paused && self.since >= PAUSE_DELAY {
            self.means = Means::Swap;
        }
        // Small changes of the target do not move the goal. It moves down by more than the slack (8 times the slack
        // while the host swaps the excess), and up by more than 8 times the slack. A goal below the guarantee always
        // moves.
        let (goal, slack) = (assessment.goal(), assessment.slack());
        let down = if self.means >= Means::Swap { 8 * slack } else { slack };
        let low = self.goal < assessment.machine.guaranteed;
        if low || self.goal > goal.saturating_add(down) || self.goal.saturating_add(8 * slack) < goal {
            self.goal = goal;
        }
    }

    /// Changes to these means.
    pub(super) fn enter(&mut self, means: Means) {
        self.pauses += u32::from(means == Means::Paused);
        (self.means, self.since) = (means, Duration::ZERO);
    }

    /// The size to which its guest should shrink; `None` if it need not.
    pub(super) fn squeezed_to(&self) -> Option<u64> {
        (self.means != Means::Released).then_some(self.goal)
    }

    /// The request to send to the guest now, if any.
    pub(super) fn ask(&mut self, machine: &MachineView) -> Option<Order> {
        let target = self.squeezed_to();
        let known =
            self.asked.is_some_and(|(asked, ago)| asked == target && (target.is_none() || ago < SQUEEZE_REPEAT));
        if known || machine.paused || machine.guest.is_none() {
            return None;
        }
        self.asked = Some((target, Duration::ZERO));
        Some(Order::Squeeze { id: machine.id, target })
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::GuestView;
    use super::*;
    use crate::daemon::testing::id;

    const SECOND: Duration = Duration::from_secs(1);

    fn machine(resident: u64, swapped: u64) -> MachineView {
        let guest = Some(GuestView::default());
        let (resident, swapped, guaranteed) = (resident * MIB, swapped * MIB, 256 * MIB);
        MachineView { resident, swapped, guaranteed, weight: 100, guest, ..MachineView::new(id(7)) }
    }

    fn assessment(machine: &MachineView, target: u64) -> Assessment<'_> {
        Assessment { machine, target: target * MIB, working_set: 0 }
    }

    fn escalation(means: Means, goal: u64) -> Escalation {
        Escalation { means, since: Duration::ZERO, goal: goal * MIB, asked: None, pauses: 0 }
    }

    #[test]
    fn a_little_is_no_excess() {
        for (resident, target, excess) in
            [(1000, 1000, 0), (1020, 1000, 0), (1040, 1000, 40), (270, 256, 0), (280, 256, 24), (10_100, 10_000, 0)]
        {
            assert_eq!(assessment(&machine(resident, 0), target).excess(), excess * MIB, "{resident} of {target}");
        }
    }

    #[test]
    fn the_goal_follows_the_target_and_not_its_noise() {
        for (means, goal, swapped, target, followed) in [
            (Means::Guest, 1000, 0, 980, 1000),
            (Means::Guest, 1000, 0, 960, 960),
            (Means::Guest, 1000, 0, 1200, 1000),
            (Means::Guest, 1000, 0, 1400, 1400),
            (Means::Guest, 1000, 400, 1000, 1400),
            (Means::Swap, 1000, 0, 860, 1000),
            (Means::Swap, 1000, 0, 700, 700),
            (Means::Guest, 250, 0, 260, 260),
        ] {
            let (machine, mut escalation) = (machine(2000, swapped), escalation(means, goal));
            escalation.update(&assessment(&machine, target), SECOND);
            assert_eq!(escalation.squeezed_to(), Some(followed * MIB), "{means:?} {goal} {swapped} {target}");
        }
    }

    #[test]
    fn a_guest_is_asked_once_and_again_where_it_may_have_forgotten() {
        let speaking = machine(2000, 0);
        let silent = MachineView { guest: None, ..speaking };
        let paused = MachineView { paused: true, ..speaking };
        let mut escalation = escalation(Means::Guest, 1000);
        let asked = |escalation: &mut Escalation, machine: &MachineView| {
            escalation.update(&assessment(machine, 1000), SECOND);
            escalation.ask(machine).map(|order| match order {
                Order::Squeeze { target, .. } => target.map(|bytes| bytes / MIB),
                other => panic!("{other:?}"),
            })
        };
        assert_eq!(asked(&mut escalation, &silent), None);
        assert_eq!(asked(&mut escalation, &speaking), Some(Some(1000)));
        let again: Vec<_> = (0..20).filter(|_| asked(&mut escalation, &speaking).is_some()).collect();
        assert_eq!(again, [9, 19]);
        assert_eq!(asked(&mut escalation, &silent), None);
        assert_eq!(asked(&mut escalation, &paused), None);
        assert_eq!(asked(&mut escalation, &speaking), Some(Some(1000)));
        escalation.enter(Means::Released);
        assert_eq!(asked(&mut escalation, &speaking), Some(None));
        assert!((0..60).all(|_| asked(&mut escalation, &speaking).is_none()), "released, it is not disturbed");
    }

    #[test]
    fn machine_resumed_by_others_is_not_paused() {
        let mut escalation = escalation(Means::Paused, 1000);
        let running = machine(2000, 0);
        let means: Vec<_> = (0..3)
            .map(|_| {
                escalation.update(&assessment(&running, 1000), SECOND);
                escalation.means
            })
            .collect();
        assert_eq!(means, [Means::Paused, Means::Paused, Means::Swap]);
    }
}
