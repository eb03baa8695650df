use proptest::prelude::*;

use super::super::model::GuestView;
use super::*;
use crate::daemon::testing::id;

const MIB: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);

/// A machine of 512 to 8192 MiB whose guest has plugged its limit, uses `used` and has `cold` cache.
fn machine(limit: u64, used: u64, cold: u64) -> MachineView {
    let guest = GuestView {
        free: (limit - used - cold) * MIB,
        available: (limit - used) * MIB,
        cold: cold * MIB,
        ..GuestView::default()
    };
    let limit = limit * MIB;
    let (boot, promised) = (512 * MIB, 8192 * MIB);
    MachineView { boot, promised, limit, plugged: limit, guest: Some(guest), ..MachineView::new(id(7)) }
}

fn short(machine: MachineView) -> MachineView {
    MachineView { guest: machine.guest.map(|guest| GuestView { short: true, ..guest }), ..machine }
}

/// The new limit in MiB after this many cycles, one a second, of a machine that stays as it is.
fn after(cycles: u32, machine: MachineView, squeezed: Option<u64>) -> Option<u64> {
    let mut limit = Limit::default();
    let decisions = (0..cycles).map(|_| limit.update(&machine, squeezed.map(|mib| mib * MIB), SECOND));
    decisions.last().flatten().filter(|&bytes| bytes != machine.limit).map(|bytes| bytes / MIB)
}

#[test]
fn it_grows_at_once() {
    for (machine, squeezed, grown) in [
        (machine(512, 100, 0), None, Some(640)),
        (machine(640, 100, 0), None, None),
        (machine(2048, 1800, 0), None, Some(2816)),
        // Cold cache needs no headroom, warm cache does.
        (machine(2048, 1000, 900), None, None),
        (machine(2048, 1500, 0), None, Some(2304)),
        (machine(8192, 8000, 0), None, None),
        // A squeezed guest grows too, by smaller steps.
        (machine(2048, 1800, 0), Some(1024), Some(2304)),
        (machine(2048, 1700, 0), Some(4096), Some(2560)),
    ] {
        assert_eq!(after(1, machine, squeezed), grown, "{machine:?}");
    }
}

#[test]
fn a_shortage_makes_it_grow_generously() {
    for (machine, grown) in [
        (short(machine(512, 200, 0)), Some(1024)),
        (short(machine(2048, 200, 0)), Some(3072)),
        (short(machine(7000, 200, 0)), Some(8192)),
        (short(machine(8192, 8192, 0)), None),
    ] {
        assert_eq!(after(1, machine, None), grown, "{machine:?}");
    }
    let plugging = MachineView { plugged: 512 * MIB, ..short(machine(1024, 0, 0)) };
    assert_eq!(after(1, plugging, None), None, "what it may plug already comes first");
}

#[test]
fn it_shrinks_late_and_seldom() {
    for (cycles, machine, squeezed, shrunk) in [
        (29, machine(4096, 1000, 0), None, None),
        (30, machine(4096, 1000, 0), None, Some(1536)),
        (30, machine(1920, 1000, 0), None, None),
        (30, machine(4096, 200, 3000), None, Some(768)),
        (3, machine(4096, 1000, 2000), Some(700), Some(1280)),
        (3, machine(4096, 1000, 2000), Some(1500), Some(1536)),
        (3, machine(1500, 1000, 0), Some(700), None),
        (30, machine(512, 0, 0), None, None),
    ] {
        assert_eq!(after(cycles, machine, squeezed), shrunk, "{cycles} {machine:?}");
    }
}

#[test]
fn a_load_that_comes_back_keeps_its_memory() {
    let mut limit = Limit::default();
    for second in 0..600 {
        let used = if second % 20 < 10 { 500 } else { 2600 };
        let decision = limit.update(&machine(4096, used, 0), None, SECOND);
        assert_eq!(decision.filter(|&bytes| bytes != 4096 * MIB), None, "second {second}");
    }
}

#[test]
fn it_shrinks_to_the_most_that_was_used() {
    let mut limit = Limit::default();
    let used = |second| if second % 10 == 0 { 1500 } else { 500 };
    let limits = (0..30).map(|second| limit.update(&machine(8192, used(second), 0), None, SECOND));
    assert_eq!(limits.last().flatten(), Some(2304 * MIB));
}

#[test]
fn a_silent_guest_is_judged_by_what_it_holds() {
    let silent = MachineView { guest: None, resident: 1400 * MIB, swapped: 100 * MIB, ..machine(1536, 0, 0) };
    assert_eq!(after(1, silent, None), Some(2304));
}

proptest! {
    #[test]
    fn any_report_of_a_guest_keeps_the_limit_within_its_promise(
        words in prop::array::uniform3(any::<u64>()),
        short: bool,
        speaks: bool,
        sizes in prop::array::uniform5(0..1u64 << 44),
        squeezed in prop::option::of(any::<u64>()),
    ) {
        let [free, available, cold] = words;
        let guest = GuestView { free, available, cold, short, ..GuestView::default() };
        let [boot, more, limit, plugged, resident] = sizes;
        let machine = MachineView {
            boot, promised: boot + more, limit, plugged, resident,
            guest: speaks.then_some(guest), ..MachineView::new(id(7))
        };
        if let Some(bytes) = Limit::default().update(&machine, squeezed, Duration::from_secs(60)) {
            prop_assert!(bytes >= boot && bytes <= machine.promised);
            prop_assert!(bytes == machine.promised || (bytes - boot) % SECTION == 0);
        }
    }
}
