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
        let orders: Vec<Order> = (0..20).flat_map(|_| next_second(&mut history, &host, &[machine]).orders).collect();
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
    assert!(matches!(orders[..], [Order::Resume { .. }, Order::Limit { .. }, .., Order::Pause { .. }]), "{orders:?}");
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
