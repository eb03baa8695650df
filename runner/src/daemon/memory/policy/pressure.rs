//! How short the host's memory is, with hysteresis. The level rises at once, and falls only after the figures have been
//! better for a while.

use std::time::Duration;

use super::model::HostView;
use super::tuning::{HARD_FULL, PRESSED_SOME, RELAPSE, RELAXED_PRESSURE, SETTLE, SETTLE_MAX};

const GIB: u64 = 1 << 30;

/// How short the host's memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// There is enough memory.
    #[default]
    Calm,
    /// Machines should shrink to their targets.
    Pressed,
    /// Machines must shrink to their targets now.
    Hard,
}

/// Memory that should stay available. Below this mark memory is short, below half of it very short. Half of the reserve
/// is for the host's programs. The mark is the other half plus a tenth of the host's memory; the tenth is at most 8 GiB.
fn high_mark(host: &HostView) -> u64 {
    host.reserve / 2 + (host.total / 10).min(8 * GIB)
}

/// Available memory at which memory is no longer short.
pub(super) fn relaxed_mark(host: &HostView) -> u64 {
    let mark = high_mark(host);
    mark + mark / 4
}

/// How much memory the machines can hold together: what they hold, plus available memory beyond the relaxed mark; at
/// most the memory without the reserve.
pub(super) fn room(host: &HostView, resident: u64) -> u64 {
    resident.saturating_add(host.available).saturating_sub(relaxed_mark(host)).min(capacity(host))
}

/// The host's memory without the reserve.
pub(super) fn capacity(host: &HostView) -> u64 {
    host.total.saturating_sub(host.reserve)
}

/// How much more memory should be available. If only the pressure shows that memory is short, one hundredth of the
/// host's memory.
pub(super) fn deficit(host: &HostView) -> u64 {
    let missing = relaxed_mark(host).saturating_sub(host.available);
    missing.max(if level(host, false) == Level::Calm { 0 } else { host.total / 100 })
}

/// How much should be swapped out. While memory is only short, just enough to reach the high mark, so that memory
/// between the marks is not swapped out and faulted back endlessly. Guests are still asked. When memory is very short,
/// as much as is missing.
pub(super) fn swap_deficit(host: &HostView, level: Level) -> u64 {
    match level {
        Level::Calm => 0,
        Level::Pressed => high_mark(host).saturating_sub(host.available),
        Level::Hard => deficit(host),
    }
}

/// The level by these figures alone. `relaxed` selects the marks for a fall of the level.
///
/// Pressure counts only while less than twice the high mark is available. Tasks also wait for memory in a control group
/// that is at its own limit, or for memory that is swapped in. Memory of other machines would not help them.
fn level(host: &HostView, relaxed: bool) -> Level {
    let (mark, scale) = if relaxed { (relaxed_mark(host), RELAXED_PRESSURE) } else { (high_mark(host), 1.0) };
    let counts = host.available < high_mark(host).saturating_mul(2);
    let above = |pressure: Option<f64>, least: f64| counts && pressure.is_some_and(|pressure| pressure > least * scale);
    if host.available < mark / 2 || above(host.pressure_full, HARD_FULL) {
        Level::Hard
    } else if host.available < mark || above(host.pressure_some, PRESSED_SOME) {
        Level::Pressed
    } else {
        Level::Calm
    }
}

/// The level of memory pressure with its history.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pressure {
    level: Level,
    /// How long the level has been the same.
    since: Duration,
    /// How long the figures have been better.
    better_for: Duration,
    /// How long the figures must be better before the level is calm.
    settle: Duration,
    /// How long the figures have been those of very short memory.
    hard_for: Duration,
}

impl Default for Pressure {
    fn default() -> Self {
        let (better_for, hard_for) = (Duration::ZERO, Duration::ZERO);
        Self { level: Level::Calm, since: RELAPSE, better_for, settle: SETTLE, hard_for }
    }
}

impl Pressure {
    /// Updates the level and returns it.
    pub(super) fn update(&mut self, host: &HostView, elapsed: Duration) -> Level {
        self.since = self.since.saturating_add(elapsed);
        let (worse, better) = (level(host, false), level(host, true));
        self.hard_for = if better == Level::Hard { self.hard_for.saturating_add(elapsed) } else { Duration::ZERO };
        if worse > self.level {
            if self.level == Level::Calm {
                self.settle = if self.since < RELAPSE { (self.settle * 2).min(SETTLE_MAX) } else { SETTLE };
            }
            self.enter(worse);
        } else if better < self.level {
            self.better_for += elapsed;
            // From hard to pressed nothing is given back, so this wait may be short.
            let settle = if better == Level::Calm { self.settle } else { SETTLE };
            if self.better_for >= settle {
                self.enter(better);
            }
        } else {
            self.better_for = Duration::ZERO;
        }
        self.level
    }

    /// How long memory has been very short without a break.
    pub(super) fn hard_for(&self) -> Duration {
        self.hard_for
    }

    fn enter(&mut self, level: Level) {
        (self.level, self.since, self.better_for) = (level, Duration::ZERO, Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// 4000 MiB, 200 of them in reserve: the marks are at 500 and 625 MiB available.
    fn host(available: u64, some: Option<f64>, full: Option<f64>) -> HostView {
        let (total, reserve) = (4000 * MIB, 200 * MIB);
        let available = available * MIB;
        HostView { total, reserve, available, pressure_some: some, pressure_full: full, ..HostView::default() }
    }

    #[test]
    fn levels_follow_memory_and_pressure() {
        use Level::*;
        for (available, some, full, strict, relaxed) in [
            (3000, None, None, Calm, Calm),
            (600, None, None, Calm, Pressed),
            (499, None, None, Pressed, Pressed),
            (260, None, None, Pressed, Hard),
            (249, None, None, Hard, Hard),
            (900, Some(6.0), Some(0.0), Pressed, Pressed),
            (900, Some(3.0), Some(0.0), Calm, Pressed),
            (900, Some(20.0), Some(6.0), Hard, Hard),
            (900, Some(f64::NAN), None, Calm, Calm),
            // Memory of other machines would not help.
            (1000, Some(90.0), Some(90.0), Calm, Calm),
        ] {
            let host = host(available, some, full);
            assert_eq!((level(&host, false), level(&host, true)), (strict, relaxed), "{host:?}");
        }
    }

    #[test]
    fn room_and_deficit_follow_what_is_available() {
        for (available, resident, room_mib, deficit_mib) in
            [(3500, 0, 2875, 0), (4000, 3000, 3800, 0), (500, 3000, 2875, 125), (100, 0, 0, 525)]
        {
            let host = host(available, None, None);
            assert_eq!((room(&host, resident * MIB), deficit(&host)), (room_mib * MIB, deficit_mib * MIB));
        }
        assert_eq!(deficit(&host(900, Some(50.0), None)), 40 * MIB);
        for (available, level, missing) in
            [(550, Level::Pressed, 0), (450, Level::Pressed, 50), (450, Level::Hard, 175), (100, Level::Calm, 0)]
        {
            assert_eq!(swap_deficit(&host(available, None, None), level), missing * MIB);
        }
    }

    /// Updates it once a second and returns the last level.
    fn hold(pressure: &mut Pressure, available: u64, seconds: u32) -> Level {
        let levels = (0..seconds).map(|_| pressure.update(&host(available, None, None), Duration::from_secs(1)));
        levels.last().unwrap_or_default()
    }

    #[test]
    fn worse_at_once_and_better_after_a_while() {
        let mut pressure = Pressure::default();
        assert_eq!(hold(&mut pressure, 490, 1), Level::Pressed);
        assert_eq!(hold(&mut pressure, 100, 1), Level::Hard);
        assert_eq!(hold(&mut pressure, 100, 20), Level::Hard);
        assert_eq!(pressure.hard_for(), Duration::from_secs(21));
        assert_eq!(hold(&mut pressure, 550, 9), Level::Hard);
        assert_eq!(pressure.hard_for(), Duration::ZERO);
        assert_eq!(hold(&mut pressure, 550, 1), Level::Pressed);
        assert_eq!(hold(&mut pressure, 550, 1000), Level::Pressed);
        assert_eq!(hold(&mut pressure, 700, 9), Level::Pressed);
        assert_eq!(hold(&mut pressure, 600, 1), Level::Pressed);
        assert_eq!(hold(&mut pressure, 700, 10), Level::Calm);
    }

    #[test]
    fn each_relapse_doubles_the_wait_for_calm() {
        let mut pressure = Pressure::default();
        let mut calm = Vec::new();
        for _ in 0..7 {
            assert_eq!(hold(&mut pressure, 400, 1), Level::Pressed);
            calm.push((1..).find(|_| hold(&mut pressure, 800, 1) == Level::Calm).unwrap());
            hold(&mut pressure, 800, 5);
        }
        assert_eq!(calm, [10, 20, 40, 80, 160, 320, 320]);
        hold(&mut pressure, 800, 200);
        hold(&mut pressure, 400, 1);
        assert_eq!((1..).find(|_| hold(&mut pressure, 800, 1) == Level::Calm), Some(10));
    }
}
