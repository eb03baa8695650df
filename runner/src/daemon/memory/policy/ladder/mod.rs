//! The means by which memory is taken from machines while host memory is short, the gentlest first: the guest gives up
//! cold memory, the host swaps, the machine is paused. Machines that hold more than their target are asked, the idlest
//! first. Each step is taken only after the one before has had its time. All steps are undone when the host has been
//! calm for a while.

use std::collections::BTreeMap;
use std::time::Duration;

use garret_api::MachineId;
use garret_api::runner::Means;

use super::escalation::{Assessment, Escalation};
use super::model::{HostView, Notice, Order};
use super::pressure::{Level, Pressure, deficit, swap_deficit};
use super::tuning::{
    GUEST_PATIENCE, GUEST_PATIENCE_HARD, PAUSE_GAP, PAUSE_MAX, RELEASE_PATIENCE, RESUME_GAP, SWAP_KEPT, SWAP_MIN,
    SWAP_PACE, SWAP_PATIENCE,
};

const MIB: u64 = 1 << 20;

/// The result of one cycle.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Steps {
    /// Orders other than limits.
    pub orders: Vec<Order>,
    /// Changes to report.
    pub notices: Vec<Notice>,
}

/// The escalation of every machine.
#[derive(Clone, Debug)]
pub(super) struct Ladder {
    pressure: Pressure,
    escalations: BTreeMap<MachineId, Escalation>,
    since_pause: Duration,
    since_resume: Duration,
}

impl Default for Ladder {
    fn default() -> Self {
        let (since_pause, since_resume) = (PAUSE_GAP, RESUME_GAP);
        Self { pressure: Pressure::default(), escalations: BTreeMap::new(), since_pause, since_resume }
    }
}

impl Ladder {
    /// What to do now; `elapsed` is the time since the last cycle.
    pub(super) fn decide(&mut self, host: &HostView, all: &[Assessment], elapsed: Duration) -> Steps {
        let level = self.pressure.update(host, elapsed);
        self.update_escalations(all, elapsed);
        let mut ranked = all.to_vec();
        ranked.sort_by(Assessment::idler_first);
        let mut cycle = Cycle { ladder: self, host, level, ranked, steps: Steps::default() };
        cycle.resume();
        cycle.release();
        if level != Level::Calm {
            cycle.squeeze();
            cycle.swap(elapsed);
            cycle.pause();
        }
        cycle.ask();
        cycle.steps
    }

    /// The size to which a machine's guest should shrink; `None` if it need not.
    pub(super) fn squeezed_to(&self, id: MachineId) -> Option<u64> {
        self.escalations.get(&id)?.squeezed_to()
    }

    /// The means in use, for each machine from which memory is taken.
    pub(super) fn squeezed(&self) -> BTreeMap<MachineId, Means> {
        let squeezed = self.escalations.iter().filter(|(_, escalation)| escalation.means != Means::Released);
        squeezed.map(|(&id, escalation)| (id, escalation.means)).collect()
    }

    /// Drops machines that are gone and adopts new ones.
    fn update_escalations(&mut self, all: &[Assessment], elapsed: Duration) {
        let known = std::mem::take(&mut self.escalations);
        for assessment in all {
            let machine = assessment.machine;
            let mut escalation = known.get(&machine.id).copied().unwrap_or_else(|| Escalation::adopt(machine));
            escalation.update(assessment, elapsed);
            self.escalations.insert(machine.id, escalation);
        }
        self.since_pause = self.since_pause.saturating_add(elapsed);
        self.since_resume = self.since_resume.saturating_add(elapsed);
    }
}

/// The state of one cycle over all machines.
struct Cycle<'a> {
    ladder: &'a mut Ladder,
    host: &'a HostView,
    level: Level,
    /// The machines, the idlest first.
    ranked: Vec<Assessment<'a>>,
    steps: Steps,
}

impl Cycle<'_> {
    /// Resumes a paused machine when a client waits for it, when the host is calm, or when its turn to pause is over.
    fn resume(&mut self) {
        // The reverse of the rank: the least idle machine first.
        for assessment in self.ranked.clone().iter().rev() {
            let (machine, escalation) = (assessment.machine, self.escalation(assessment));
            if escalation.means != Means::Paused {
                if machine.paused {
                    // Ordered before and not done yet.
                    self.steps.orders.push(Order::Resume { id: machine.id });
                }
                continue;
            }
            let paused_s = escalation.since.as_secs();
            let reason = if machine.needed {
                "resumed: a client waits for this machine".into()
            } else if self.level == Level::Calm && self.ladder.since_resume >= RESUME_GAP {
                self.enough()
            } else if self.level != Level::Calm && escalation.since >= PAUSE_MAX {
                format!("resumed after a pause of {paused_s} s, although {}", self.shortage())
            } else {
                continue;
            };
            let means = if self.level == Level::Calm { Means::Released } else { Means::Guest };
            self.ladder.since_resume = Duration::ZERO;
            self.steps.orders.push(Order::Resume { id: machine.id });
            self.enter(assessment, means, assessment.target, reason);
        }
    }

    /// Releases machines when the host is calm, or when they hold far less than their target.
    fn release(&mut self) {
        for assessment in self.ranked.clone() {
            let escalation = self.escalation(&assessment);
            if matches!(escalation.means, Means::Released | Means::Paused) {
                continue;
            }
            if self.level == Level::Calm {
                self.enter(&assessment, Means::Released, assessment.target, self.enough());
            } else if escalation.since >= RELEASE_PATIENCE && assessment.far_below_target() {
                let (holds, target) = (mib(assessment.machine.resident), mib(assessment.target));
                let reason = format!("this machine holds {holds} MiB and may hold {target}");
                self.enter(&assessment, Means::Released, assessment.target, reason);
            }
        }
    }

    /// Asks as many guests as needed to end the shortage, assuming that they do as asked.
    fn squeeze(&mut self) {
        let lack = deficit(self.host);
        let asked = self.ranked.iter().filter(|assessment| self.escalation(assessment).means != Means::Released);
        let mut relief: u64 = asked.map(Assessment::excess).sum();
        for assessment in self.ranked.clone() {
            let excess = assessment.excess();
            if relief < lack && excess > 0 && self.escalation(&assessment).means == Means::Released {
                relief += excess;
                let holds = mib(assessment.machine.resident);
                let reason =
                    format!("{}; this machine holds {holds} MiB, {} above its share", self.shortage(), mib(excess));
                self.enter(&assessment, Means::Guest, assessment.target, reason);
            }
        }
    }

    /// Swaps out memory that guests above their targets did not give up in the time they had.
    fn swap(&mut self, elapsed: Duration) {
        let patience = if self.level == Level::Hard { GUEST_PATIENCE_HARD } else { GUEST_PATIENCE };
        let pace = SWAP_PACE * elapsed.as_millis().min(1000) as u64 / 1000;
        let lack = swap_deficit(self.host, self.level);
        let mut budget = lack.min(pace).min(usable_swap(self.host));
        for assessment in self.ranked.clone() {
            let (escalation, excess) = (self.escalation(&assessment), assessment.excess());
            let ripe = match escalation.means {
                Means::Released => false,
                Means::Guest => escalation.since >= patience,
                Means::Swap | Means::Paused => true,
            };
            let bytes = excess.min(budget);
            if !ripe || bytes < SWAP_MIN {
                continue;
            }
            if escalation.means == Means::Guest {
                let waited = escalation.since.as_secs();
                let reason = format!(
                    "{}; after {waited} s this machine's guest still holds {} MiB, {} above its share",
                    self.shortage(),
                    mib(assessment.machine.resident),
                    mib(excess)
                );
                self.enter(&assessment, Means::Swap, bytes, reason);
            }
            budget -= bytes;
            self.steps.orders.push(Order::Swap { id: assessment.machine.id, bytes });
        }
    }

    /// Pauses one more machine if swapping does not help, because swapped-out memory is swapped in again. Chooses a
    /// machine that no client waits for: one with the fewest pauses, and of these the one with the least CPU use. At
    /// least half of the machines continue to run.
    fn pause(&mut self) {
        let hard_for = self.ladder.pressure.hard_for();
        let paused = self.ladder.escalations.values().filter(|escalation| escalation.means == Means::Paused).count();
        let too_many = 2 * (paused + 1) > self.ranked.len();
        if hard_for < SWAP_PATIENCE || self.ladder.since_pause < PAUSE_GAP || too_many {
            return;
        }
        let candidates = self.ranked.iter().filter(|assessment| self.can_be_paused(assessment));
        let turn = |assessment: &&Assessment| self.escalation(assessment).pauses;
        let next = candidates
            .min_by(|one, other| turn(one).cmp(&turn(other)).then(one.machine.cpus.total_cmp(&other.machine.cpus)));
        let Some(assessment) = next.copied() else { return };
        let reason = format!(
            "{} for {} s although it is swapped out; this machine uses {:.2} CPUs and no client waits for it",
            self.shortage(),
            hard_for.as_secs(),
            assessment.machine.cpus
        );
        self.ladder.since_pause = Duration::ZERO;
        self.steps.orders.push(Order::Pause { id: assessment.machine.id });
        self.enter(&assessment, Means::Paused, assessment.target, reason);
    }

    fn can_be_paused(&self, assessment: &Assessment) -> bool {
        let (machine, escalation) = (assessment.machine, self.escalation(assessment));
        let squeezed = matches!(escalation.means, Means::Guest | Means::Swap) && escalation.since >= GUEST_PATIENCE;
        squeezed && !machine.needed && !machine.paused
    }

    /// Asks the guests, where their goal is new or must be repeated.
    fn ask(&mut self) {
        for assessment in &self.ranked {
            let machine = assessment.machine;
            let escalation = self.ladder.escalations.get_mut(&machine.id);
            self.steps.orders.extend(escalation.and_then(|escalation| escalation.ask(machine)));
        }
    }

    fn escalation(&self, assessment: &Assessment) -> Escalation {
        self.ladder.escalations[&assessment.machine.id]
    }

    fn enter(&mut self, assessment: &Assessment, means: Means, bytes: u64, reason: String) {
        let id = assessment.machine.id;
        if let Some(escalation) = self.ladder.escalations.get_mut(&id) {
            escalation.enter(means);
        }
        self.steps.notices.push(Notice { id, means, bytes, reason });
    }

    fn shortage(&self) -> String {
        format!("host memory is short: {}", self.figures())
    }

    fn enough(&self) -> String {
        format!("host memory is enough again: {}", self.figures())
    }

    fn figures(&self) -> String {
        let HostView { available, total, pressure_some, .. } = *self.host;
        let pressure = pressure_some.map(|some| format!(", pressure {some:.0} %")).unwrap_or_default();
        format!("{} of {} MiB available{pressure}", mib(available), mib(total))
    }
}

/// Free swap that orders may fill.
fn usable_swap(host: &HostView) -> u64 {
    host.swap_free.saturating_sub(host.swap_total / SWAP_KEPT)
}

/// Whole MiB, with a comma as thousands separator.
fn mib(bytes: u64) -> String {
    let digits = (bytes / MIB).to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests;
