//! The one definition of an idle machine, by CPU use.

use std::time::Duration;

use garret_api::IDLE_CPUS;

use super::tuning::{AWAKE_CPU_S, CPU_AVERAGE, IDLE_AFTER};

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Activity {
    /// The average of its CPU use, in CPUs.
    cpus: f64,
    idle_for: Duration,
}

impl Activity {
    /// Adds a cycle: the machine used `cpus` CPUs for the time `elapsed`.
    pub(super) fn update(&mut self, cpus: f64, elapsed: Duration) {
        let share = 1.0 - (-elapsed.div_duration_f64(CPU_AVERAGE)).exp();
        self.cpus += (cpus - self.cpus) * share;
        let idle = self.cpus < IDLE_CPUS && cpus * elapsed.as_secs_f64().min(1.0) < AWAKE_CPU_S;
        self.idle_for = if idle { self.idle_for.saturating_add(elapsed) } else { Duration::ZERO };
    }

    /// How long it has used next to no CPU.
    pub(super) fn idle_for(&self) -> Duration {
        self.idle_for
    }

    pub(super) fn is_idle(&self) -> bool {
        self.idle_for >= IDLE_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_machine_is_idle_after_a_minute_and_awake_at_once() {
        let mut activity = Activity::default();
        for _ in 0..59 {
            activity.update(0.05, SECOND);
            assert!(!activity.is_idle());
        }
        activity.update(0.05, SECOND);
        assert!(activity.is_idle());
        activity.update(0.3, SECOND);
        assert_eq!(activity.idle_for(), Duration::ZERO);
    }

    #[test]
    fn a_timer_that_fires_wakes_no_machine() {
        let mut activity = Activity::default();
        for cycle in 0..80 {
            activity.update(if cycle % 10 == 9 { 0.2 } else { 0.02 }, SECOND);
        }
        assert!(activity.is_idle(), "{activity:?}");
    }
}
