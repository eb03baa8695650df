//! Detects host I/O errors on a machine's data disk: one event for the developer per episode.

use garret_api::vmm::Metrics;

/// The VMM's count at the last check. For an adopted VMM, the count is unknown before the first check.
#[derive(Debug, Default)]
pub(super) struct DiskFailures {
    count: Option<u64>,
    failing: bool,
}

impl DiskFailures {
    /// The state for a VMM that starts now.
    pub(super) fn of_new_vmm() -> Self {
        Self { count: Some(0), failing: false }
    }

    /// Stores the VMM's count; returns whether an episode has begun.
    pub(super) fn begin(&mut self, count: u64) -> bool {
        let failing = self.count.is_some_and(|known| count > known);
        self.count = Some(count);
        !std::mem::replace(&mut self.failing, failing) && failing
    }
}

/// The sum over all block devices. The VMM reports these figures, and a guest may have taken over the VMM.
pub(super) fn count(metrics: &Metrics) -> u64 {
    let disks = metrics.devices.iter().filter(|(name, _)| name.starts_with("block"));
    disks.map(|(_, device)| device.host_failures).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use garret_api::vmm::DeviceMetrics;

    use super::*;

    #[test]
    fn an_episode_begins_once_and_ends_with_a_clean_check() {
        let mut failures = DiskFailures::of_new_vmm();
        for (check, (count, begins)) in
            [(0, false), (3, true), (9, false), (9, false), (10, true), (10, false)].into_iter().enumerate()
        {
            assert_eq!(failures.begin(count), begins, "check {check}");
        }
    }

    #[test]
    fn failures_before_an_adoption_are_no_episode() {
        let mut failures = DiskFailures::default();
        for (check, (count, begins)) in [(7, false), (7, false), (8, true)].into_iter().enumerate() {
            assert_eq!(failures.begin(count), begins, "check {check}");
        }
    }

    #[test]
    fn figures_without_measure_are_counted_without_overflow() {
        let disk = |name: &str| (name.to_owned(), DeviceMetrics { host_failures: 1 << 63, ..Default::default() });
        let metrics = |devices: &[&str]| Metrics {
            devices: devices.iter().map(|name| disk(name)).collect(),
            ..Default::default()
        };
        assert_eq!(count(&metrics(&["block0", "net0"])), 1 << 63);
        assert_eq!(count(&metrics(&["block0", "block1"])), u64::MAX);
    }
}
