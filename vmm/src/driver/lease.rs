//! The time for which the API's client may withhold processors or memory from the machine without a request. A client
//! that died or hangs must not keep a machine paused or short of memory.

use std::time::{Duration, Instant};

use garret_api::vmm::{MachineState, MemoryInfo};

/// A lease; each request renews it.
pub(super) struct Lease {
    length: Duration,
    renewed: Instant,
}

impl Lease {
    /// A lease renewed at `now`.
    pub(super) fn new(length: Duration, now: Instant) -> Self {
        Self { length, renewed: now }
    }

    pub(super) fn renew(&mut self, now: Instant) {
        self.renewed = now;
    }

    /// The time until it expires; zero once it has expired.
    pub(super) fn left(&self, now: Instant) -> Duration {
        self.length.saturating_sub(now.saturating_duration_since(self.renewed))
    }
}

/// Whether anything that the machine was promised is withheld from it.
pub(super) fn is_withheld(state: MachineState, memory: &MemoryInfo) -> bool {
    state == MachineState::Paused || memory.requested_mib < memory.size_mib
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_renews_the_whole_length() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lease = Lease::new(Duration::from_secs(3), start);
        assert_eq!(lease.left(at(1)), Duration::from_secs(2));
        lease.renew(at(2));
        assert_eq!(lease.left(at(4)), Duration::from_secs(1));
        assert_eq!([lease.left(at(5)), lease.left(at(60))], [Duration::ZERO; 2]);
        assert_eq!(lease.left(start), Duration::from_secs(3), "an earlier time than that of the renewal");
    }

    #[test]
    fn paused_or_limited_machines_are_withheld_from() {
        let whole = MemoryInfo { size_mib: 512, requested_mib: 512, ..MemoryInfo::default() };
        let limited = MemoryInfo { requested_mib: 510, ..whole };
        for (state, memory, withheld) in [
            (MachineState::Running, &whole, false),
            (MachineState::Running, &limited, true),
            (MachineState::Running, &MemoryInfo::default(), false),
            (MachineState::Paused, &whole, true),
        ] {
            assert_eq!(is_withheld(state, memory), withheld, "{state:?} {memory:?}");
        }
    }
}
