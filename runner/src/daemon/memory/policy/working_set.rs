//! How much of its memory a machine seems to use. The guest's report counts only within what the host has measured.

use super::model::{GuestView, MachineView};
use super::tuning::{CLAIM_HEADROOM, WORKING_SET_MIN};

/// How much of the host's memory and swap it holds.
pub(super) fn held(machine: &MachineView) -> u64 {
    machine.resident.saturating_add(machine.swapped)
}

/// The memory that it holds and uses: without memory that is free or cold in its guest. A silent guest does not report
/// that. It then counts as using all it holds, or `WORKING_SET_MIN` if `idle`. A paused machine counts as using
/// `WORKING_SET_MIN`.
pub(super) fn working_set(machine: &MachineView, idle: bool) -> u64 {
    let held = held(machine);
    let used = match &machine.guest {
        _ if machine.paused => 0,
        Some(guest) => touched(machine, guest),
        None if idle => 0,
        None => held,
    };
    used.clamp(WORKING_SET_MIN.min(held), held)
}

/// The working set plus headroom: the memory a machine may claim while other machines want memory too.
pub(super) fn wanted(working_set: u64) -> u64 {
    working_set.saturating_add(CLAIM_HEADROOM.max(working_set / 4))
}

/// Memory that is neither free nor cold. Memory that the guest has compressed counts at its compressed size. When the
/// guest uses it again, it is decompressed and counts in full.
fn touched(machine: &MachineView, guest: &GuestView) -> u64 {
    held(machine).min(machine.plugged.saturating_sub(guest.free)).saturating_sub(guest.cold)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::testing::id;

    const MIB: u64 = 1 << 20;
    fn machine(resident: u64, swapped: u64, guest: Option<(u64, u64)>) -> MachineView {
        let guest = guest.map(|(free, cold)| GuestView { free: free * MIB, cold: cold * MIB, ..GuestView::default() });
        let (resident, swapped) = (resident * MIB, swapped * MIB);
        MachineView { plugged: 2048 * MIB, resident, swapped, guest, ..MachineView::new(id(7)) }
    }

    #[test]
    fn guests_report_counts_only_within_what_it_holds() {
        for (resident, swapped, guest, idle, used) in [
            (1000, 0, Some((1048, 300)), false, 700),
            (1000, 200, Some((1048, 300)), false, 700),
            (1000, 0, Some((0, 300)), false, 700),
            (1000, 0, Some((2000, 0)), false, 64),
            (1000, 0, Some((0, 0)), true, 1000),
            (1000, 0, Some((1 << 40, 1 << 40)), false, 64),
            (1000, 200, None, false, 1200),
            (1000, 200, None, true, 64),
            (20, 0, None, true, 20),
            (0, 0, Some((0, 0)), false, 0),
        ] {
            let machine = machine(resident, swapped, guest);
            assert_eq!(working_set(&machine, idle), used * MIB, "{machine:?}");
        }
    }

    #[test]
    fn a_paused_machine_uses_the_minimum() {
        let machine = MachineView { paused: true, ..machine(1000, 0, Some((0, 0))) };
        assert_eq!(working_set(&machine, false), 64 * MIB);
    }

    #[test]
    fn a_quarter_may_be_claimed_to_grow_into() {
        for (used, claimed) in [(0, 64), (100, 164), (1000, 1250)] {
            assert_eq!(wanted(used * MIB), claimed * MIB);
        }
    }
}
