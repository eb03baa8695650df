use super::super::model::{GuestView, MachineView};
use super::*;
use crate::daemon::testing::id;

const SECOND: Duration = Duration::from_secs(1);

/// A host of 4000 MiB with a reserve of 200: memory is short below 500 available, very short below 250.
fn host(available: u64) -> HostView {
    let (total, reserve, swap) = (4000 * MIB, 200 * MIB, 4000 * MIB);
    let available = available * MIB;
    HostView { total, reserve, available, swap_total: swap, swap_free: swap, ..HostView::default() }
}

/// A machine with a target of 500 MiB.
fn machine(number: u32, resident: u64, cpus: f64) -> MachineView {
    let guest = Some(GuestView::default());
    MachineView { resident: resident * MIB, weight: 100, cpus, guest, ..MachineView::new(id(number)) }
}

/// Runs one cycle per second. Returns the last steps, without squeezes of the guests.
fn run(ladder: &mut Ladder, host: &HostView, machines: &[MachineView], seconds: u32) -> Steps {
    let assess = |machine| Assessment { machine, target: 500 * MIB, working_set: 300 * MIB };
    let assessments: Vec<Assessment> = machines.iter().map(assess).collect();
    let steps = (0..seconds).map(|_| ladder.decide(host, &assessments, SECOND));
    let mut steps = steps.last().unwrap_or_default();
    steps.orders.retain(|order| !matches!(order, Order::Squeeze { .. }));
    steps
}

fn reported(steps: &Steps) -> Vec<(MachineId, Means)> {
    steps.notices.iter().map(|notice| (notice.id, notice.means)).collect()
}

#[test]
fn as_many_are_squeezed_as_it_takes_the_idlest_first() {
    let machines = [machine(1, 700, 0.0), machine(2, 900, 1.0), machine(3, 900, 0.1), machine(4, 505, 0.0)];
    for (available, squeezed) in [
        (2000, &[][..]),
        // 225 MiB are missing.
        (400, &[(id(3), Means::Guest)]),
        // 415 MiB are missing.
        (210, &[(id(3), Means::Guest), (id(2), Means::Guest)]),
    ] {
        let steps = run(&mut Ladder::default(), &host(available), &machines, 1);
        assert_eq!(reported(&steps), squeezed, "{available}");
    }
    let mut heavy = machines;
    heavy[2].weight = 1000;
    assert_eq!(reported(&run(&mut Ladder::default(), &host(400), &heavy, 1)), [(id(2), Means::Guest)]);
}

#[test]
fn a_notice_has_the_numbers() {
    let host = HostView { pressure_some: Some(12.3), ..host(300) };
    let steps = run(&mut Ladder::default(), &host, &[machine(1, 1620, 0.0)], 1);
    let reason = "host memory is short: 300 of 4,000 MiB available, pressure 12 %; this machine holds 1,620 MiB, \
                  1,120 above its share";
    let notice = Notice { id: id(1), means: Means::Guest, bytes: 500 * MIB, reason: reason.into() };
    assert_eq!(steps.notices, [notice]);
}

#[test]
fn swap_follows_where_a_guest_does_not_come_down() {
    let machines = [machine(1, 900, 0.0), machine(2, 400, 0.0)];
    let swap = |mib: u64| vec![Order::Swap { id: id(1), bytes: mib * MIB }];
    for (available, seconds, orders) in [
        (450, 5, vec![]),
        // Up to 500 MiB available, and no further.
        (450, 6, swap(50)),
        (240, 1, vec![]),
        // 385 MiB are missing; at most 256 are swapped at once.
        (240, 2, swap(256)),
    ] {
        let steps = run(&mut Ladder::default(), &host(available), &machines, seconds);
        assert_eq!(steps.orders, orders, "{available} for {seconds} s");
    }
    let full = HostView { swap_free: 200 * MIB, ..host(240) };
    assert_eq!(run(&mut Ladder::default(), &full, &machines, 10).orders, []);
}

#[test]
fn a_machine_is_paused_where_swapping_does_not_help() {
    let mut machines = [machine(1, 700, 0.3), machine(2, 700, 0.1), machine(3, 700, 0.0), machine(4, 400, 0.0)];
    machines[2].needed = true;
    let mut ladder = Ladder::default();
    let paused = |steps: &Steps| steps.orders.iter().any(|order| matches!(order, Order::Pause { .. }));
    assert!(!paused(&run(&mut ladder, &host(100), &machines, 14)));
    let steps = run(&mut ladder, &host(100), &machines, 1);
    assert_eq!(steps.orders.last(), Some(&Order::Pause { id: id(2) }));
    machines[1].paused = true;
    assert!(!paused(&run(&mut ladder, &host(100), &machines, 9)));
    assert_eq!(run(&mut ladder, &host(100), &machines, 1).orders.last(), Some(&Order::Pause { id: id(1) }));
    machines[0].paused = true;
    // At least half of the machines always run.
    assert!(!paused(&run(&mut ladder, &host(100), &machines, 100)));
    machines[0].needed = true;
    assert_eq!(run(&mut ladder, &host(100), &machines, 1).orders.first(), Some(&Order::Resume { id: id(1) }));
    machines[0].paused = false;
    run(&mut ladder, &host(100), &machines, 6);
    (machines[0].needed, machines[2].needed, machines[2].cpus) = (false, false, 0.9);
    machines[1].resident = 900 * MIB;
    // The machine that was not paused yet is next, although it uses more CPU.
    assert_eq!(run(&mut ladder, &host(100), &machines, 1).orders.last(), Some(&Order::Pause { id: id(3) }));
}

#[test]
fn all_machines_are_released_when_the_host_is_calm() {
    let mut machines = [machine(1, 900, 0.0), machine(2, 900, 0.5)];
    let mut ladder = Ladder::default();
    run(&mut ladder, &host(100), &machines, 15);
    assert_eq!(ladder.squeezed().into_values().collect::<Vec<_>>(), [Means::Paused, Means::Guest]);
    machines[0].paused = true;
    assert_eq!(reported(&run(&mut ladder, &host(2000), &machines, 9)), []);
    let steps = run(&mut ladder, &host(2000), &machines, 1);
    assert_eq!(reported(&steps), [(id(1), Means::Released), (id(2), Means::Released)]);
    assert_eq!(steps.orders, [Order::Resume { id: id(1) }]);
    // The order is repeated until it is done.
    assert_eq!(run(&mut ladder, &host(2000), &machines, 1).orders, [Order::Resume { id: id(1) }]);
    assert!(ladder.squeezed().is_empty());
}

#[test]
fn machine_far_below_its_target_is_released_earlier() {
    let mut machines = [machine(1, 900, 0.0), machine(2, 600, 0.0)];
    let mut ladder = Ladder::default();
    run(&mut ladder, &host(400), &machines, 1);
    machines[0].resident = 100 * MIB;
    assert_eq!(reported(&run(&mut ladder, &host(400), &machines, 29)), []);
    assert_eq!(reported(&run(&mut ladder, &host(400), &machines, 1)), [(id(1), Means::Released)]);
}

#[test]
fn machine_paused_by_an_earlier_runner_is_adopted() {
    let machines = [MachineView { paused: true, ..machine(1, 400, 0.0) }, machine(2, 400, 0.5)];
    let mut ladder = Ladder::default();
    assert_eq!(run(&mut ladder, &host(100), &machines, 10).orders, []);
    assert_eq!(ladder.squeezed(), BTreeMap::from([(id(1), Means::Paused)]));
    assert_eq!(run(&mut ladder, &host(100), &machines, 290).orders, [Order::Resume { id: id(1) }]);
    assert_eq!(run(&mut Ladder::default(), &host(2000), &machines, 1).orders, [Order::Resume { id: id(1) }]);
}

#[test]
fn large_numbers_have_commas() {
    for (mib_count, text) in [(0, "0"), (999, "999"), (3900, "3,900"), (1_048_576, "1,048,576")] {
        assert_eq!(mib(mib_count * MIB), text);
    }
}
