//! The load of the guest between two readings of the kernel's counters.

use std::time::Duration;

use garret_api::IDLE_CPUS;

use super::super::readings::Counters;
use super::super::tuning::{CROWDED_STALL, LOAD_SPAN};

/// The guest's state between two readings.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Load {
    /// The guest uses almost no CPU time.
    pub idle: bool,
    /// Tasks wait for CPUs.
    pub crowded: bool,
    /// The fraction of the time in which at least one task waited for memory; 0 if the kernel does not report it.
    pub memory_stall: f64,
    /// Pages per second that were read back after their eviction.
    pub refaults: f64,
}

/// Computes loads from counters.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    from: Option<(Duration, Counters)>,
    load: Option<Load>,
}

impl Gauge {
    /// The load of the last complete span up to `now`; `None` before the first span is complete.
    pub(crate) fn update(&mut self, now: Duration, counters: Counters) -> Option<Load> {
        match self.from {
            Some((from, before)) if now >= from + LOAD_SPAN => {
                self.load = Some(load(now - from, before, counters));
                self.from = Some((now, counters));
            }
            Some(_) => {}
            None => self.from = Some((now, counters)),
        }
        self.load
    }
}

fn load(elapsed: Duration, before: Counters, after: Counters) -> Load {
    let part = |before: Duration, after: Duration| after.saturating_sub(before).as_secs_f64() / elapsed.as_secs_f64();
    let stall = |before: Option<Duration>, after: Option<Duration>| before.zip(after).map_or(0.0, |(a, b)| part(a, b));
    Load {
        idle: part(before.busy, after.busy) < IDLE_CPUS,
        crowded: stall(before.cpu_stall, after.cpu_stall) > CROWDED_STALL,
        memory_stall: stall(before.memory_stall, after.memory_stall),
        refaults: after.refaults.saturating_sub(before.refaults) as f64 / elapsed.as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(memory: Option<u64>, cpu: Option<u64>, busy: u64, refaults: u64) -> Counters {
        let ms = Duration::from_millis;
        Counters { memory_stall: memory.map(ms), cpu_stall: cpu.map(ms), busy: ms(busy), refaults }
    }

    #[test]
    fn a_load_is_of_a_whole_span() {
        let mut gauge = Gauge::default();
        let mut look = |ms, counters| gauge.update(Duration::from_millis(ms), counters);
        assert_eq!(look(0, counters(Some(100), Some(0), 1000, 5)), None);
        assert_eq!(look(1000, counters(Some(9000), Some(0), 9000, 5)), None);
        let busy = Load { idle: false, crowded: true, memory_stall: 0.25, refaults: 5.0 };
        assert_eq!(look(4000, counters(Some(1100), Some(3000), 9000, 25)), Some(busy));
        assert_eq!(look(5000, counters(Some(1100), Some(3000), 9000, 2500)), Some(busy));
        let idle = Load { idle: true, crowded: false, memory_stall: 0.0, refaults: 0.0 };
        assert_eq!(look(14_000, counters(None, None, 9500, 25)), Some(idle));
    }
}
