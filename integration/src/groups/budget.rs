//! How long each group of tests may take: on two idle cores without virtualization, with room to spare.

use super::Group;
use std::time::Duration;

/// One group's budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// With empty caches.
    pub cold: Duration,
    /// After everything was built once.
    pub warm: Duration,
}

impl Budget {
    const fn minutes(cold: u64, warm: u64) -> Self {
        Self { cold: Duration::from_secs(60 * cold), warm: Duration::from_secs(60 * warm) }
    }

    /// The budget of one group. CONTRIBUTING.md states the sum of all.
    pub(super) const fn of(group: Group) -> Self {
        match group {
            Group::Lint => Self::minutes(3, 1),
            Group::Unit => Self::minutes(8, 2),
            Group::Artifacts => Self::minutes(17, 3),
            Group::EndToEnd => Self::minutes(20, 15),
            Group::Gate => Self::minutes(4, 1),
        }
    }
}

/// Machines differ in speed by a factor of two and more.
pub(super) const FAILS_BEYOND: u32 = 3;

/// The verdict on a group's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Within,
    /// Reported; the group passes.
    Over,
    /// Beyond [`FAILS_BEYOND`] times the budget.
    Failed,
}

/// Compares a group's time with its budget.
pub(super) fn judge(budget: Duration, took: Duration) -> Verdict {
    if took <= budget {
        Verdict::Within
    } else if took <= budget * FAILS_BEYOND {
        Verdict::Over
    } else {
        Verdict::Failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_fails_only_beyond_three_times_its_budget() {
        for (budget_s, took_s, verdict) in [
            (60, 0, Verdict::Within),
            (60, 60, Verdict::Within),
            (60, 61, Verdict::Over),
            (60, 180, Verdict::Over),
            (60, 181, Verdict::Failed),
            (1200, 3600, Verdict::Over),
            (1200, 3601, Verdict::Failed),
        ] {
            let (budget, took) = (Duration::from_secs(budget_s), Duration::from_secs(took_s));
            assert_eq!(judge(budget, took), verdict, "{took_s} s of {budget_s} s");
        }
    }

    #[test]
    fn budgets_add_up_to_what_the_document_says() {
        let budgets = Group::ALL.map(Budget::of);
        assert_eq!(budgets.map(|budget| budget.cold).iter().sum::<Duration>(), Duration::from_secs(52 * 60));
        assert_eq!(budgets.map(|budget| budget.warm).iter().sum::<Duration>(), Duration::from_secs(22 * 60));
    }
}
