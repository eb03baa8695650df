//! Decides from measurements of the host and its machines how much memory each machine should hold, how much it may
//! plug, and by which means memory is taken. It has no clock and carries out nothing itself. The history can be lost at
//! any time: it is rebuilt from what the next cycles see.

use std::collections::BTreeMap;
use std::time::Duration;

use garret_api::MachineId;
use garret_api::runner::Means;

use super::activity::Activity;
use super::escalation::Assessment;
use super::idle_swap::IdleSwap;
use super::ladder::{Ladder, Steps};
use super::limits::{Limit, PlugRetry};
use super::model::{Decision, HostView, MachineView, Notice, Order};
use super::pressure::{capacity, room};
use super::targets::{Claim, targets};
use super::tuning::{ELAPSED_MAX, UNPLUG_SWAPPED_MAX};
use super::working_set::{held, wanted, working_set};

/// What the policy remembers from one cycle to the next.
#[derive(Clone, Debug, Default)]
pub struct History {
    ladder: Ladder,
    machines: BTreeMap<MachineId, MachineHistory>,
}

#[derive(Clone, Copy, Debug, Default)]
struct MachineHistory {
    activity: Activity,
    limit: Limit,
    plug_retry: PlugRetry,
    idle_swap: IdleSwap,
}

/// Decides what to do now; `elapsed` is the time since the last cycle. It depends on nothing but its arguments.
pub fn decide(history: &mut History, host: &HostView, machines: &[MachineView], elapsed: Duration) -> Decision {
    let elapsed = elapsed.min(ELAPSED_MAX);
    history.update_histories(machines, elapsed);
    let used: Vec<u64> = machines.iter().map(|machine| working_set(machine, history.idle(machine))).collect();
    let claims: Vec<Claim> = machines.iter().zip(&used).map(|(machine, &used)| claim(machine, used)).collect();
    let targets = targets(guaranteed_room(host, machines), &claims);
    let assessed = machines.iter().zip(&targets).zip(&used);
    let assessments: Vec<Assessment> =
        assessed.map(|((machine, &target), &working_set)| Assessment { machine, target, working_set }).collect();
    let Steps { mut orders, mut notices } = history.ladder.decide(host, &assessments, elapsed);
    history.swap_out_idle(host, machines, elapsed, &mut orders, &mut notices);
    orders.extend(machines.iter().filter_map(|machine| history.limit(machine, elapsed)));
    orders.sort_by_key(precedence);
    let ids = || machines.iter().map(|machine| machine.id);
    Decision {
        targets: ids().zip(targets).collect(),
        working_sets: ids().zip(used).collect(),
        squeezed: history.ladder.squeezed(),
        orders,
        notices,
    }
}

impl History {
    /// On an overcommitted host, swaps out the untouched memory of idle machines, except of machines from which memory
    /// is being taken by another means.
    fn swap_out_idle(
        &mut self,
        host: &HostView,
        machines: &[MachineView],
        elapsed: Duration,
        orders: &mut Vec<Order>,
        notices: &mut Vec<Notice>,
    ) {
        let mut room = if promised(machines) > capacity(host) { spare_swap(host) } else { 0 };
        for machine in machines {
            let id = machine.id;
            let squeezed = self.ladder.squeezed_to(id).is_some();
            let Some(history) = self.machines.get_mut(&id) else { continue };
            let unplugs = history.limit.is_pending() && machine.swapped < UNPLUG_SWAPPED_MAX;
            if squeezed || machine.paused || unplugs {
                history.idle_swap.skip_cycle(elapsed);
                continue;
            }
            let Some(step) = history.idle_swap.next_step(machine, history.activity.idle_for(), room, elapsed) else {
                continue;
            };
            room -= step.bytes;
            orders.push(Order::Swap { id, bytes: step.bytes });
            if step.first {
                let (idle, promised, total) =
                    (history.activity.idle_for().as_secs(), promised(machines) >> 20, host.total >> 20);
                let reason = format!(
                    "this machine has been idle for {idle} s, and {promised} MiB are promised on a host of {total} MiB: \
                     memory that it does not use is swapped out"
                );
                notices.push(Notice { id, means: Means::Swap, bytes: step.bytes, reason });
            }
        }
    }

    fn update_histories(&mut self, machines: &[MachineView], elapsed: Duration) {
        let known = std::mem::take(&mut self.machines);
        for machine in machines {
            let mut history = known.get(&machine.id).copied().unwrap_or_default();
            history.activity.update(machine.cpus, elapsed);
            self.machines.insert(machine.id, history);
        }
    }

    fn idle(&self, machine: &MachineView) -> bool {
        self.machines.get(&machine.id).is_some_and(|history| history.activity.is_idle())
    }

    /// Returns a new limit if it should change, or the same limit again if the guest has not plugged it. A paused guest
    /// cannot plug or unplug memory.
    fn limit(&mut self, machine: &MachineView, elapsed: Duration) -> Option<Order> {
        let squeezed = self.ladder.squeezed_to(machine.id);
        let history = self.machines.get_mut(&machine.id).filter(|_| !machine.paused)?;
        let again = history.plug_retry.is_due(machine, elapsed);
        let wanted = history.limit.update(machine, squeezed, elapsed);
        let futile = |bytes: u64| machine.swapped >= UNPLUG_SWAPPED_MAX && bytes < machine.limit;
        let changed = wanted.filter(|&bytes| bytes != machine.limit && !futile(bytes));
        let bytes = changed.or_else(|| again.then_some(machine.limit))?;
        Some(Order::Limit { id: machine.id, bytes })
    }
}

fn claim(machine: &MachineView, used: u64) -> Claim {
    let MachineView { guaranteed, promised, weight, .. } = *machine;
    Claim { guaranteed, promised, wanted: wanted(used), weight, held: held(machine), used }
}

/// Free swap that idle machines may use. Half of the swap is reserved for busy machines.
fn spare_swap(host: &HostView) -> u64 {
    host.swap_free.saturating_sub(host.swap_total / 2)
}

fn promised(machines: &[MachineView]) -> u64 {
    machines.iter().map(|machine| machine.promised).fold(0, u64::saturating_add)
}

/// How much memory the machines can hold together. At least the sum of their guarantees, as far as the capacity allows.
fn guaranteed_room(host: &HostView, machines: &[MachineView]) -> u64 {
    let sum = |size: fn(&MachineView) -> u64| machines.iter().map(size).fold(0, u64::saturating_add);
    let guaranteed = sum(|machine| machine.guaranteed).min(capacity(host));
    room(host, sum(|machine| machine.resident)).max(guaranteed)
}

/// Orders that give to a machine come before orders that take from it.
fn precedence(order: &Order) -> u8 {
    match order {
        Order::Resume { .. } => 0,
        Order::Limit { .. } => 1,
        Order::Squeeze { .. } => 2,
        Order::Swap { .. } => 3,
        Order::Pause { .. } => 4,
    }
}

#[cfg(test)]
mod tests;
