use std::time::Duration;

/// The kernel renews its totals of pressure every 2 s: no shorter span tells anything.
const SPAN: Duration = Duration::from_secs(2);
/// A guest that uses less than this of one CPU is idle.
const IDLE_CPUS: f64 = 0.1;
/// A guest in which tasks wait for a CPU during more of the time is crowded: the loop does no extra work in it.
const CROWDED: f64 = 0.5;

/// The kernel's counters, each since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counters {
    /// Time in which some task waited for memory; `None`: the kernel does not tell.
    pub memory_stall: Option<Duration>,
    /// The same for a CPU.
    pub cpu_stall: Option<Duration>,
    /// Time of all CPUs in which they were used or waited for a disk.
    pub busy: Duration,
    /// Pages that came back after they had been evicted.
    pub refaults: u64,
}

/// How it went between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mood {
    /// Nothing much runs.
    pub idle: bool,
    /// Tasks wait for CPUs.
    pub crowded: bool,
    /// The part of the time in which some task waited for memory; 0 where the kernel does not tell.
    pub memory_stall: f64,
    /// Pages a second that came back after they had been evicted.
    pub refaults: f64,
}

/// Makes moods of counters.
#[derive(Debug, Default)]
pub struct Gauge {
    from: Option<(Duration, Counters)>,
    mood: Option<Mood>,
}

impl Gauge {
    /// The mood of the last whole span up to `now`; `None` before the first is over.
    pub fn look(&mut self, now: Duration, counters: Counters) -> Option<Mood> {
        match self.from {
            Some((from, before)) if now >= from + SPAN => {
                self.mood = Some(mood(now - from, before, counters));
                self.from = Some((now, counters));
            }
            Some(_) => {}
            None => self.from = Some((now, counters)),
        }
        self.mood
    }
}

fn mood(elapsed: Duration, before: Counters, after: Counters) -> Mood {
    let part = |before: Duration, after: Duration| after.saturating_sub(before).as_secs_f64() / elapsed.as_secs_f64();
    let stall = |before: Option<Duration>, after: Option<Duration>| before.zip(after).map_or(0.0, |(a, b)| part(a, b));
    Mood {
        idle: part(before.busy, after.busy) < IDLE_CPUS,
        crowded: stall(before.cpu_stall, after.cpu_stall) > CROWDED,
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
    fn a_mood_is_of_a_whole_span() {
        let mut gauge = Gauge::default();
        let mut look = |ms, counters| gauge.look(Duration::from_millis(ms), counters);
        assert_eq!(look(0, counters(Some(100), Some(0), 1000, 5)), None);
        assert_eq!(look(1000, counters(Some(9000), Some(0), 9000, 5)), None);
        let busy = Mood { idle: false, crowded: true, memory_stall: 0.25, refaults: 5.0 };
        assert_eq!(look(4000, counters(Some(1100), Some(3000), 9000, 25)), Some(busy));
        assert_eq!(look(5000, counters(Some(1100), Some(3000), 9000, 2500)), Some(busy));
        let idle = Mood { idle: true, crowded: false, memory_stall: 0.0, refaults: 0.0 };
        assert_eq!(look(14_000, counters(None, None, 9500, 25)), Some(idle));
    }
}
