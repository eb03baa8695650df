//! When a report is due, and when memory is short.

use std::time::Duration;

use garret_api::agent::MemoryReport;

use crate::memory::tuning::{
    NOTICEABLE_PART, REPORT_INTERVAL_MAX, SHORT_MAX, SHORT_MIN, SHORT_PART, STALLED, TICK, TICK_SHORT,
};

/// Decides when a report is due. All times count from one fixed start.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    last: Option<(Duration, MemoryReport)>,
    stalled: Option<Duration>,
}

impl Pace {
    /// Notes the kernel's event that tasks wait for memory.
    pub(crate) fn stalled(&mut self, now: Duration) {
        self.stalled = Some(now);
    }

    pub(crate) fn is_short(&self, now: Duration, total: u64, available: u64) -> bool {
        available < (total / SHORT_PART).clamp(SHORT_MIN, SHORT_MAX)
            || self.stalled.is_some_and(|stalled| now < stalled + STALLED)
    }

    /// Whether to send this report. If so, it becomes the last sent report.
    pub(crate) fn is_due(&mut self, now: Duration, report: &MemoryReport) -> bool {
        let due = match &self.last {
            None => true,
            Some((at, last)) => {
                let passed = now.saturating_sub(*at);
                // A reading may come a little early.
                let usual = passed + TICK_SHORT / 2 >= TICK && is_noticeable(last, report);
                report.short || last.short || usual || passed >= REPORT_INTERVAL_MAX
            }
        };
        if due {
            self.last = Some((now, report.clone()));
        }
        due
    }

    /// Makes the next report due, even if nothing has changed.
    pub(crate) fn ask(&mut self) {
        self.last = None;
    }

    /// The time until the next reading.
    pub(crate) fn tick(&self) -> Duration {
        let short = self.last.as_ref().is_some_and(|(_, last)| last.short);
        if short { TICK_SHORT } else { TICK }
    }
}

fn is_noticeable(last: &MemoryReport, now: &MemoryReport) -> bool {
    let figures = |report: &MemoryReport| {
        [report.total, report.free, report.available, report.cold, report.swap_total, report.swap_used]
    };
    let least = now.total / NOTICEABLE_PART;
    let moved = figures(last).iter().zip(figures(now)).any(|(last, now)| last.abs_diff(now) >= least.max(1));
    moved || last.oom_kills != now.oom_kills
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::tuning::MIB;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn report(available: u64, short: bool) -> MemoryReport {
        MemoryReport { total: 1000 * MIB, available: available * MIB, short, ..Default::default() }
    }

    #[test]
    fn when_a_report_is_due() {
        // now, available in MiB, short, due
        let looks = [
            (0, 500, false, true),
            (1000, 500, false, false),
            (2000, 481, false, false),
            (3000, 480, false, true),
            (3500, 100, false, false),
            (4000, 100, false, true),
            (14_000, 100, false, true),
            (14_010, 90, true, true),
            (14_210, 90, true, true),
            (14_410, 500, false, true),
            (14_610, 500, false, false),
            (15_410, 500, false, false),
        ];
        let mut pace = Pace::default();
        for (now, available, short, due) in looks {
            assert_eq!(pace.is_due(ms(now), &report(available, short)), due, "at {now}");
            assert_eq!(pace.tick(), if short { TICK_SHORT } else { TICK });
        }
        pace.ask();
        assert!(pace.is_due(ms(15_420), &report(500, false)));
    }

    #[test]
    fn a_kill_is_noticeable() {
        let killed = MemoryReport { oom_kills: 1, ..report(500, false) };
        assert!(is_noticeable(&report(500, false), &killed));
        assert!(!is_noticeable(&MemoryReport::default(), &MemoryReport::default()));
    }

    #[test]
    fn memory_is_short_below_its_thresholds() {
        // total, available in MiB
        let cases = [
            (512, 96, false),
            (512, 95, true),
            (2048, 256, false),
            (2048, 255, true),
            (65_536, 512, false),
            (0, 0, true),
        ];
        for (total, available, short) in cases {
            assert_eq!(Pace::default().is_short(ms(0), total * MIB, available * MIB), short, "{available} of {total}");
        }
        let mut pace = Pace::default();
        pace.stalled(ms(500));
        assert!(pace.is_short(ms(1499), 1000 * MIB, 900 * MIB));
        assert!(!pace.is_short(ms(1500), 1000 * MIB, 900 * MIB));
    }
}
