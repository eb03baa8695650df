//! What the host fails to read or write for a machine's data disk: one event for the developer in each episode.

use garret_api::Problem;
use garret_api::vmm::Metrics;

use super::driver::{Driver, REFRESH_DEADLINE};
use crate::daemon::state::MachineRow;

/// What the VMM had counted at the last look.
#[derive(Debug, Default)]
pub(super) struct DiskFailures {
    count: u64,
    failing: bool,
}

impl DiskFailures {
    /// Notes the VMM's count; says whether an episode has begun.
    fn begin(&mut self, count: u64) -> bool {
        let failing = count > self.count;
        self.count = count;
        !std::mem::replace(&mut self.failing, failing) && failing
    }
}

impl Driver {
    /// Asks the VMM whether the host failed its disk, and says so.
    pub(super) async fn look_at_disk(&mut self, machine: &MachineRow) {
        let vmm = self.daemon.vmm(&machine.name, REFRESH_DEADLINE);
        // One that does not answer is asked again at the next look.
        let Ok(metrics) = vmm.get::<Metrics>("/v1/metrics").await else { return };
        let disks = metrics.devices.iter().filter(|(name, _)| name.starts_with("block"));
        if self.disk.begin(disks.map(|(_, device)| device.host_failures).sum()) {
            let said = "the host cannot write the machine's data disk, and what a program has synced is kept: if the host's \
                        disk is full, writes wait until there is space; see the VMM's log for another reason";
            self.report(machine, Problem::new("host-disk", said)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_episode_begins_once_and_ends_with_a_look_that_finds_no_more() {
        let mut failures = DiskFailures::default();
        for (look, (count, begins)) in
            [(0, false), (3, true), (9, false), (9, false), (10, true), (10, false)].into_iter().enumerate()
        {
            assert_eq!(failures.begin(count), begins, "look {look}");
        }
    }
}
