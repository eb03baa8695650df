//! When to act again: after resistance, and before a costly step.

use std::time::Duration;

use crate::memory::tuning::{
    COMPACTION_INTERVAL, COMPACTION_INTERVAL_SQUEEZED, FRAGMENTED_MIN, FRAGMENTED_PART, Pauses, SLAB_IDLE,
    SLAB_INTERVAL, SLAB_MIN,
};

/// A pause that doubles after each resistance, and halves as long as there is none. All times count from one fixed
/// start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pauses: Pauses,
    pause: Duration,
    until: Duration,
    halve: Duration,
}

impl Backoff {
    pub(crate) fn new(pauses: Pauses) -> Self {
        Self { pauses, pause: Duration::ZERO, until: Duration::ZERO, halve: Duration::ZERO }
    }

    /// Notes resistance. During a pause it counts as the same resistance: the pause starts again with the same length.
    pub(crate) fn resisted(&mut self, now: Duration) {
        if !self.pausing(now) {
            self.pause = (self.pause * 2).clamp(self.pauses.first, self.pauses.max);
        }
        self.until = now + self.pause;
        self.halve = self.until + self.pause;
    }

    /// Notes that there is no resistance.
    pub(crate) fn calm(&mut self, now: Duration) {
        if now >= self.halve {
            self.pause = if self.pause > self.pauses.first { self.pause / 2 } else { Duration::ZERO };
            self.halve = now + self.pause;
        }
    }

    /// Whether the caller must wait.
    pub(crate) fn pausing(&self, now: Duration) -> bool {
        now < self.until
    }
}

/// When to compact, so that free memory is in blocks large enough to be returned to the host.
#[derive(Debug, Default)]
pub(crate) struct Compaction {
    last: Option<Duration>,
    /// The fragmented bytes that the last compaction could not merge.
    residual: u64,
    /// The next check is the first one after a compaction.
    just_compacted: bool,
}

impl Compaction {
    /// Whether a compaction is due: `fragmented` bytes are free in too small blocks, of `total` bytes of memory. The
    /// caller must then compact.
    pub(crate) fn due(&mut self, now: Duration, fragmented: u64, total: u64, squeezed: bool) -> bool {
        if std::mem::take(&mut self.just_compacted) {
            self.residual = fragmented;
        }
        self.residual = self.residual.min(fragmented);
        let interval = if squeezed { COMPACTION_INTERVAL_SQUEEZED } else { COMPACTION_INTERVAL };
        let rested = self.last.is_none_or(|last| now >= last + interval);
        let due = rested && fragmented - self.residual >= FRAGMENTED_MIN.max(total / FRAGMENTED_PART);
        if due {
            self.last = Some(now);
            self.just_compacted = true;
        }
        due
    }
}

/// When to drop the kernel's caches of names and attributes: after a long idle time and much growth.
#[derive(Debug, Default)]
pub(crate) struct SlabDrop {
    /// The time of the last drop, and the bytes that it left.
    last: Option<(Duration, u64)>,
    /// The next check is the first one after a drop.
    just_dropped: bool,
}

impl SlabDrop {
    /// Whether a drop is due: the caches have `slab` bytes, and the guest is idle since then. The caller must then drop
    /// them.
    pub(crate) fn due(&mut self, now: Duration, slab: u64, idle_since: Option<Duration>) -> bool {
        if std::mem::take(&mut self.just_dropped)
            && let Some((_, left)) = &mut self.last
        {
            *left = slab;
        }
        let (rested, left) = match self.last {
            Some((at, left)) => (now >= at + SLAB_INTERVAL, left),
            None => (true, 0),
        };
        let idle = idle_since.is_some_and(|since| now >= since + SLAB_IDLE);
        let due = idle && rested && slab.saturating_sub(left) >= SLAB_MIN;
        if due {
            self.last = Some((now, slab));
            self.just_dropped = true;
        }
        due
    }
}

#[cfg(test)]
mod tests;
