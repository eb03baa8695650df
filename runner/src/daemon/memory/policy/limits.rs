//! How much a guest may plug. The limit follows what the guest uses. It rises at once and with headroom, so that a
//! burst gets its memory within a second. It falls late and seldom, so that a periodic load finds its memory still
//! there.
//!
//! Admission ensures that memory and swap cover what is promised. A guest that grows is never refused promised memory,
//! because that would kill a process in it. Squeezing only reduces the headroom.

use std::time::Duration;

use super::model::MachineView;
use super::tuning::{
    LIMIT_HEADROOM, LIMIT_HEADROOM_SQUEEZED, LIMIT_PATIENCE, LIMIT_PATIENCE_SQUEEZED, LIMIT_STEP_MIN, PLUG_RETRY_AFTER,
    SECTION,
};
use super::working_set::held;

/// Decides when to repeat a limit that the guest has not plugged. Holds how long a part of it has been unplugged.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PlugRetry(Duration);

impl PlugRetry {
    /// Returns true once per [`PLUG_RETRY_AFTER`] while a part of the limit is unplugged.
    pub(super) fn is_due(&mut self, machine: &MachineView, elapsed: Duration) -> bool {
        self.0 = if plugged(machine) < machine.limit { self.0 + elapsed } else { Duration::ZERO };
        let again = self.0 >= PLUG_RETRY_AFTER;
        if again {
            self.0 = Duration::ZERO;
        }
        again
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limit {
    /// How long the limit has been too high.
    excess_for: Duration,
    /// The largest limit wanted in that time.
    most: u64,
}

impl Limit {
    /// Whether the limit may soon be lowered.
    pub(super) fn is_pending(&self) -> bool {
        !self.excess_for.is_zero()
    }

    /// The machine's new limit in bytes, if it should change: memory at boot plus whole sections, at most the promised
    /// memory. `squeezed` is the size to which a squeezed machine should shrink.
    pub(super) fn update(&mut self, machine: &MachineView, squeezed: Option<u64>, elapsed: Duration) -> Option<u64> {
        let wanted = in_sections(machine, wanted(machine, squeezed));
        let (patience, least) = match squeezed {
            None => (LIMIT_PATIENCE, LIMIT_STEP_MIN.max(machine.limit / 4)),
            Some(_) => (LIMIT_PATIENCE_SQUEEZED, LIMIT_STEP_MIN),
        };
        let Some(excess) = machine.limit.checked_sub(wanted) else {
            *self = Self::default();
            return Some(wanted);
        };
        if excess < least {
            *self = Self::default();
            return None;
        }
        self.excess_for += elapsed;
        self.most = self.most.max(wanted);
        (self.excess_for >= patience).then(|| std::mem::take(self).most)
    }
}

/// Used memory plus headroom.
fn wanted(machine: &MachineView, squeezed: Option<u64>) -> u64 {
    let unsqueezed = unsqueezed(machine);
    squeezed.map_or(unsqueezed, |target| {
        unsqueezed.min(target.max(with_headroom(unreclaimable(machine), 4, LIMIT_HEADROOM_SQUEEZED)))
    })
}

fn unsqueezed(machine: &MachineView) -> u64 {
    let plugged = plugged(machine);
    let guest = machine.guest.unwrap_or_default();
    let warm = match machine.guest {
        Some(guest) => plugged.saturating_sub(guest.free).saturating_sub(guest.cold),
        None => 0,
    };
    let wanted = with_headroom(warm.max(unreclaimable(machine)), 2, LIMIT_HEADROOM);
    match guest.short {
        // From the plugged memory, not from the limit: the guest may report a shortage many times before it has
        // plugged.
        true => wanted.max(with_headroom(plugged, 2, LIMIT_HEADROOM)),
        false => wanted,
    }
}

/// Memory that the guest could not give up without swapping. For a silent guest: all that it holds.
fn unreclaimable(machine: &MachineView) -> u64 {
    let plugged = plugged(machine);
    machine.guest.map_or(held(machine).min(plugged), |guest| plugged.saturating_sub(guest.available))
}

fn plugged(machine: &MachineView) -> u64 {
    machine.plugged.max(machine.boot)
}

fn with_headroom(used: u64, divisor: u64, least: u64) -> u64 {
    used.saturating_add(least.max(used / divisor))
}

/// Memory at boot plus enough whole sections to hold `wanted`.
fn in_sections(machine: &MachineView, wanted: u64) -> u64 {
    let plugged = wanted.saturating_sub(machine.boot).div_ceil(SECTION).saturating_mul(SECTION);
    machine.boot.saturating_add(plugged).min(machine.promised.max(machine.boot))
}

#[cfg(test)]
mod tests {
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
}
