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
mod tests;
