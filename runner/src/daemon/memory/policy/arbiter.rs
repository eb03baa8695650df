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
mod tests {
    use proptest::prelude::*;

    use super::super::model::GuestView;
    use super::*;
    use crate::daemon::testing::id;

    const MIB: u64 = 1 << 20;
    const SECOND: Duration = Duration::from_secs(1);

    fn next_second(history: &mut History, host: &HostView, machines: &[MachineView]) -> Decision {
        decide(history, host, machines, SECOND)
    }

    #[test]
    fn a_silent_machine_that_computes_nothing_is_idle_after_a_while() {
        let host = HostView { total: 4000 * MIB, available: 2000 * MIB, ..HostView::default() };
        let resident = 1000 * MIB;
        let machine = MachineView { promised: 4000 * MIB, weight: 100, resident, ..MachineView::new(id(5)) };
        let mut history = History::default();
        let used: Vec<u64> =
            (0..60).map(|_| next_second(&mut history, &host, &[machine]).working_sets[&id(5)] / MIB).collect();
        assert_eq!((used[58], used[59]), (1000, 64));
        assert_eq!(
            next_second(&mut history, &host, &[MachineView { cpus: 0.5, ..machine }]).working_sets[&id(5)],
            resident
        );
    }

    const ROOMY: u64 = 8000 * MIB;

    /// A host with enough of everything.
    fn roomy_host() -> HostView {
        let (total, available) = (4000 * MIB, 3000 * MIB);
        HostView { total, available, swap_total: ROOMY, swap_free: ROOMY, ..HostView::default() }
    }

    /// Whether anything is swapped out of a machine in five minutes; `cpus` is the CPU use at each cycle.
    fn is_swapped_out(host: &HostView, machine: &MachineView, interval: Duration, cpus: fn(u32) -> f64) -> bool {
        let mut history = History::default();
        let cycles = 300 * (SECOND.as_millis() / interval.as_millis()) as u32;
        let mut orders = (0..cycles).flat_map(|cycle| {
            let machine = MachineView { cpus: cpus(cycle), ..*machine };
            decide(&mut history, host, &[machine], interval).orders
        });
        orders.any(|order| matches!(order, Order::Swap { .. }))
    }

    #[test]
    fn idle_machine_on_an_overcommitted_host_is_swapped_out() {
        let host = roomy_host();
        let half_full = HostView { swap_free: ROOMY / 2, ..host };
        let machine = MachineView { promised: 5000 * MIB, resident: 70 * MIB, ..MachineView::new(id(5)) };
        let modest = MachineView { promised: 2000 * MIB, ..machine };
        let idle: fn(u32) -> f64 = |_| 0.01;
        let timers: fn(u32) -> f64 = |cycle| if cycle % 5 == 0 { 0.2 } else { 0.01 };
        let frequent_cycles: fn(u32) -> f64 = |cycle| if cycle % 50 == 0 { 0.4 } else { 0.01 };
        let little: fn(u32) -> f64 = |_| 0.15;
        let often: fn(u32) -> f64 = |cycle| if cycle % 8 == 0 { 0.3 } else { 0.0 };
        for (case, host, machine, interval, cpus, expected) in [
            ("idle", &host, &machine, SECOND, idle, true),
            ("a guest's timers", &host, &machine, SECOND, timers, true),
            ("the same, ten cycles a second", &host, &machine, SECOND / 10, frequent_cycles, true),
            ("a little work", &host, &machine, SECOND, little, false),
            ("some work each 8 s", &host, &machine, SECOND, often, false),
            ("half of the swap is full", &half_full, &machine, SECOND, idle, false),
            ("no more promised than there is", &host, &modest, SECOND, idle, false),
        ] {
            assert_eq!(is_swapped_out(host, machine, interval, cpus), expected, "{case}");
        }
    }

    #[test]
    fn guest_that_has_not_plugged_its_limit_is_asked_again() {
        let [promised, limit, plugged, boot] = [4000, 1024, 640, 512].map(|mib| mib * MIB);
        let guest = GuestView { free: 0, available: 0, ..GuestView::default() };
        let sizes = MachineView { promised, limit, plugged, boot, ..MachineView::new(id(5)) };
        let machine = MachineView { weight: 100, resident: plugged, guest: Some(guest), ..sizes };
        let asked = |machine: &MachineView| {
            let mut history = History::default();
            let orders = (0..10).flat_map(|_| next_second(&mut history, &roomy_host(), &[*machine]).orders);
            orders.filter(|order| *order == Order::Limit { id: id(5), bytes: machine.limit }).count()
        };
        let wanted = MachineView { limit: 1152 * MIB, ..machine };
        assert_eq!(asked(&wanted), 5, "each second cycle");
        assert_eq!(asked(&MachineView { plugged: wanted.limit, promised: wanted.limit, ..wanted }), 0);
        assert_eq!(asked(&MachineView { paused: true, ..wanted }), 0);
    }

    #[test]
    fn memory_about_to_be_unplugged_is_not_swapped_out() {
        let guest = GuestView { free: 2900 * MIB, available: 2950 * MIB, ..GuestView::default() };
        let (boot, limit, plugged) = (512 * MIB, 3000 * MIB, 3000 * MIB);
        let sizes = MachineView { boot, limit, plugged, promised: 5000 * MIB, ..MachineView::new(id(5)) };
        let machine = MachineView { resident: 70 * MIB, guest: Some(guest), ..sizes };
        let mut history = History::default();
        let orders: Vec<Order> =
            (0..60).flat_map(|_| next_second(&mut history, &roomy_host(), &[machine]).orders).collect();
        let first = orders.iter().find(|order| matches!(order, Order::Limit { .. } | Order::Swap { .. }));
        assert!(matches!(first, Some(Order::Limit { .. })), "{orders:?}");
        // With much memory swapped out, nothing is unplugged, so there is nothing to wait for.
        let swapped = MachineView { swapped: UNPLUG_SWAPPED_MAX, ..machine };
        assert!(is_swapped_out(&roomy_host(), &swapped, SECOND, |_| 0.0));
    }

    #[test]
    fn nothing_is_unplugged_while_much_is_swapped_out() {
        let guest = GuestView { free: 2500 * MIB, available: 2600 * MIB, ..GuestView::default() };
        let sizes = [4000, 3000, 3000, 2500, 512].map(|mib| mib * MIB);
        let [promised, limit, plugged, resident, boot] = sizes;
        let machine = MachineView { promised, limit, plugged, resident, boot, ..MachineView::new(id(5)) };
        let machine = MachineView { guest: Some(guest), weight: 100, cpus: 1.0, ..machine };
        let host = HostView { total: 4000 * MIB, available: 100 * MIB, ..HostView::default() };
        for (swapped, lowered) in [(0, true), (64, false)] {
            let machine = MachineView { swapped: swapped * MIB, ..machine };
            let mut history = History::default();
            let orders: Vec<Order> =
                (0..20).flat_map(|_| next_second(&mut history, &host, &[machine]).orders).collect();
            let limits = orders.iter().any(|order| matches!(order, Order::Limit { .. }));
            assert_eq!(limits, lowered, "{orders:?}");
        }
    }

    #[test]
    fn resume_and_limit_come_before_swap_and_pause() {
        let id = id(1);
        let mut orders = vec![
            Order::Pause { id },
            Order::Swap { id, bytes: 1 },
            Order::Squeeze { id, target: None },
            Order::Limit { id, bytes: 1 },
            Order::Resume { id },
        ];
        orders.sort_by_key(precedence);
        assert!(
            matches!(orders[..], [Order::Resume { .. }, Order::Limit { .. }, .., Order::Pause { .. }]),
            "{orders:?}"
        );
    }

    #[test]
    fn a_host_without_machines_needs_no_decision() {
        assert_eq!(next_second(&mut History::default(), &HostView::default(), &[]), Decision::default());
    }

    fn any_guest() -> impl Strategy<Value = Option<GuestView>> {
        let words = (prop::array::uniform3(any::<u64>()), any::<Option<f64>>(), any::<bool>());
        prop::option::of(words.prop_map(|([free, available, cold], pressure, short)| GuestView {
            free,
            available,
            cold,
            pressure_some: pressure,
            short,
        }))
    }

    fn any_machine() -> impl Strategy<Value = MachineView> {
        let sizes = (256..8192u64, 0..8192u64, 0..8192u64, 0..8192u64, 0..8192u64, 0..4096u64);
        (sizes, any_guest(), 0..20_000u32, any::<f64>(), any::<(bool, bool)>()).prop_map(
            |((boot, promised, guaranteed, limit, resident, swapped), guest, weight, cpus, (paused, needed))| {
                let [boot, promised, guaranteed, limit, resident, swapped] =
                    [boot, promised, guaranteed, limit, resident, swapped].map(|mib| mib * MIB);
                let (id, plugged) = (id(0), limit);
                MachineView {
                    id,
                    promised,
                    guaranteed,
                    weight,
                    boot,
                    limit,
                    plugged,
                    resident,
                    swapped,
                    cpus,
                    guest,
                    paused,
                    needed,
                }
            },
        )
    }

    fn any_machines() -> impl Strategy<Value = Vec<MachineView>> {
        prop::collection::vec(any_machine(), 1..40).prop_map(|mut machines| {
            (0..).zip(&mut machines).for_each(|(number, machine)| machine.id = id(number));
            machines
        })
    }

    fn any_host() -> impl Strategy<Value = HostView> {
        let sizes = (0..400_000u64, 0..400_000u64, 0..400_000u64, 0..400_000u64, 0..20_000u64);
        (sizes, any::<Option<f64>>(), any::<Option<f64>>()).prop_map(
            |((total, available, swap_total, swap_free, reserve), pressure_some, pressure_full)| {
                let [total, available, swap_total, swap_free, reserve] =
                    [total, available, swap_total, swap_free, reserve].map(|mib| mib * MIB);
                HostView { total, available, swap_total, swap_free, reserve, pressure_some, pressure_full }
            },
        )
    }

    proptest! {
        /// For any input, guarantees are kept if the capacity allows them, and the targets are within the capacity.
        #[test]
        fn targets_are_within_guarantees_and_capacity(host in any_host(), machines in any_machines()) {
            let decision = next_second(&mut History::default(), &host, &machines);
            prop_assert!(decision.targets.values().sum::<u64>() <= capacity(&host));
            let guaranteed: u64 = machines.iter().map(|machine| machine.guaranteed).sum();
            for machine in machines.iter().filter(|_| guaranteed <= capacity(&host)) {
                prop_assert!(decision.targets[&machine.id] >= machine.guaranteed);
            }
        }

        /// No report of one guest makes another machine's target lower than when that guest claims the maximum.
        #[test]
        fn a_guests_word_takes_nothing_from_others(
            host in any_host(), mut machines in any_machines(), word in any_guest(),
        ) {
            machines[0].paused = false;
            // The guest has no free and no cold memory.
            machines[0].guest = Some(GuestView::default());
            machines[0].plugged = u64::MAX;
            let greedy = next_second(&mut History::default(), &host, &machines);
            machines[0].guest = word;
            let lied = next_second(&mut History::default(), &host, &machines);
            for machine in &machines[1..] {
                let (greedy, lied) = (greedy.targets[&machine.id], lied.targets[&machine.id]);
                prop_assert!(lied + 100 >= greedy, "{lied} instead of {greedy}");
            }
        }

        /// However often the same input is repeated, no more is swapped than there is swap, and notices are single
        /// lines.
        #[test]
        fn orders_stay_within_the_swap(host in any_host(), machines in any_machines(), cycles in 1..30u32) {
            let mut history = History::default();
            for _ in 0..cycles {
                let decision = next_second(&mut history, &host, &machines);
                let swapped = decision.orders.iter().map(|order| match order {
                    Order::Swap { bytes, .. } => *bytes,
                    _ => 0,
                });
                prop_assert!(swapped.sum::<u64>() <= host.swap_free);
                prop_assert!(decision.notices.iter().all(|notice| !notice.reason.contains('\n')));
            }
        }
    }
}
