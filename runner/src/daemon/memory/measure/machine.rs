//! One running machine: measures it and passes orders to it.

use std::sync::Arc;
use std::time::Duration;

use garret_api::MachineId;
use garret_api::vmm::MemoryInfo;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::follow::{Reports, follow};
use crate::daemon::Daemon;
use crate::daemon::memory::act::Actuators;
use crate::daemon::memory::act::PauseState;
use crate::daemon::memory::policy::{MachineView, Order};
use crate::daemon::memory::report::LogOnChange;
use crate::daemon::state::{MachineRow, VmmId};
use crate::host::{self, Usage};

/// How long a VMM may take to report its state. All are asked at once: one that hangs delays a cycle by no more than
/// this.
const REPORT_TIMEOUT: Duration = Duration::from_millis(300);
const MIB: u64 = 1 << 20;

/// The state of one machine between two cycles.
#[derive(Debug)]
pub(crate) struct Watched {
    vmm: VmmId,
    reports: Reports,
    /// The VMM's last report.
    info: Option<MemoryInfo>,
    /// When CPU time was last read, and how much was used until then.
    used: Option<(Instant, Duration)>,
    /// The value last written as the control group's memory protection.
    protected: Option<u64>,
    problem: LogOnChange,
    actuators: Actuators,
    /// The tasks of the actuators and the follower. They end when this is dropped.
    _tasks: JoinSet<()>,
}

impl Watched {
    /// Starts watching.
    pub(crate) fn new(daemon: &Arc<Daemon>, machine: &MachineRow, vmm: VmmId) -> Self {
        let id = machine.id;
        let mut tasks = JoinSet::new();
        let actuators = Actuators::new(daemon, id, &mut tasks);
        let (reports, squeeze) = (Reports::default(), actuators.squeeze.clone());
        let problem = LogOnChange::of(format!("memory of {id}"));
        // An agent keeps a squeeze in its own memory. The follower repeats it to an agent that was restarted, or that
        // an earlier runner has squeezed.
        tasks.spawn(follow(daemon.clone(), id, reports.clone(), move || squeeze.repeat()));
        Self { vmm, reports, info: None, used: None, protected: None, problem, actuators, _tasks: tasks }
    }

    /// Whether this watches the given VMM.
    pub(crate) fn is(&self, vmm: &VmmId) -> bool {
        self.vmm == *vmm
    }

    /// The guest's reports about itself.
    pub(crate) fn reports(&self) -> &Reports {
        &self.reports
    }

    /// Measures the machine; `None` if it has just ended.
    pub(crate) async fn measure(&mut self, daemon: &Daemon, machine: &MachineRow, needed: bool) -> Option<MachineView> {
        let vmm = daemon.vmm(machine.id, REPORT_TIMEOUT);
        let guaranteed = u64::from(machine.guaranteed_mib) * MIB;
        let protect = (self.protected != Some(guaranteed)).then_some(guaranteed);
        let pauses = &daemon.memory.pauses;
        let (usage, info, ()) =
            tokio::join!(measure_cgroup(machine.id, protect), vmm.get("/v1/memory"), pauses.check(machine.id, &vmm));
        match info {
            Ok(info) => self.info = Some(info),
            Err(error) => tracing::debug!(machine = %machine.id, "no memory figures: {error}"),
        }
        let (usage, problem) = usage?;
        if problem.is_none() {
            self.protected = Some(guaranteed);
        }
        self.problem.note(problem);
        Some(MachineView {
            cpus: self.cpus(usage.cpu),
            guest: self.reports.fresh(),
            paused: pauses.state(machine.id) == PauseState::Paused,
            needed: needed || pauses.is_needed(machine.id),
            ..sizes(machine, self.info.as_ref(), &usage)
        })
    }

    /// CPUs used since the last cycle.
    fn cpus(&mut self, cpu: Duration) -> f64 {
        let now = Instant::now();
        let Some((then, before)) = self.used.replace((now, cpu)) else { return 0.0 };
        let passed = now.duration_since(then).as_secs_f64();
        if passed > 0.0 { cpu.saturating_sub(before).as_secs_f64() / passed } else { 0.0 }
    }

    /// Passes an order on. Returns at once.
    pub(crate) fn order(&self, order: &Order) {
        match order {
            Order::Limit { bytes, .. } => {
                if let Some(requested) = self.info.as_ref().and_then(|info| requested_mib(info, *bytes)) {
                    self.actuators.limit.order(requested);
                }
            }
            Order::Squeeze { target, .. } => self.actuators.squeeze.order(*target),
            Order::Swap { bytes, .. } => self.actuators.swap.order((Instant::now(), *bytes)),
            Order::Pause { .. } => self.actuators.pause.order(true),
            Order::Resume { .. } => self.actuators.pause.order(false),
        }
    }
}

/// How much of the region may be plugged so that the guest has `bytes`: whole blocks of 2 MiB; `None` without a region.
fn requested_mib(info: &MemoryInfo, bytes: u64) -> Option<u32> {
    let beyond = (bytes / MIB).saturating_sub(info.boot_mib.into()).min(info.size_mib.into());
    (info.size_mib > 0).then_some(beyond as u32 / 2 * 2)
}

/// The sizes in a view. If the VMM has not reported yet, its memory counts as fixed.
fn sizes(machine: &MachineRow, info: Option<&MemoryInfo>, usage: &Usage) -> MachineView {
    let fixed = MemoryInfo { boot_mib: machine.memory_mib, ..MemoryInfo::default() };
    let info = info.unwrap_or(&fixed);
    let beyond_boot = |mib: u32| (u64::from(info.boot_mib) + u64::from(mib.min(info.size_mib))) * MIB;
    let promised = beyond_boot(info.size_mib);
    MachineView {
        promised,
        guaranteed: (u64::from(machine.guaranteed_mib) * MIB).min(promised),
        weight: machine.weight,
        boot: beyond_boot(0),
        limit: beyond_boot(info.requested_mib),
        plugged: beyond_boot(info.plugged_mib),
        resident: usage.resident,
        swapped: usage.swapped,
        ..MachineView::new(machine.id)
    }
}

/// Reads the control group, and writes its memory protection if that has changed; `None` if the group is gone.
async fn measure_cgroup(machine: MachineId, protect: Option<u64>) -> Option<(Usage, Option<String>)> {
    let measured = tokio::task::spawn_blocking(move || {
        let usage = host::usage(machine).ok()?;
        let protected = protect.map_or(Ok(()), |bytes| host::protect(machine, bytes));
        Some((usage, protected.err().map(|error| format!("{error:#}"))))
    });
    measured.await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::state::tests::machine;

    const INFO: MemoryInfo =
        MemoryInfo { boot_mib: 512, size_mib: 1024, requested_mib: 256, plugged_mib: 128, driver: true, refused: 0 };

    #[test]
    fn a_machine_keeps_the_promise_of_its_start() {
        let row = MachineRow { memory_mib: 9999, guaranteed_mib: 2000, ..machine(7) };
        let usage = Usage { resident: 1, swapped: 2, cpu: Duration::ZERO };
        let view = sizes(&row, Some(&INFO), &usage);
        assert_eq!((view.promised / MIB, view.guaranteed / MIB), (1536, 1536));
        assert_eq!((view.boot / MIB, view.limit / MIB, view.plugged / MIB), (512, 768, 640));
        let silent = sizes(&row, None, &usage);
        assert_eq!((silent.boot / MIB, silent.limit / MIB, silent.promised / MIB), (9999, 9999, 9999));
    }

    #[test]
    fn a_limit_becomes_whole_blocks_of_the_region() {
        for (mib, requested) in [(0, 0), (512, 0), (513, 0), (515, 2), (768, 256), (1536, 1024), (9999, 1024)] {
            assert_eq!(requested_mib(&INFO, mib * MIB + 5), Some(requested), "{mib}");
        }
        assert_eq!(requested_mib(&INFO, u64::MAX), Some(1024));
        assert_eq!(requested_mib(&MemoryInfo { size_mib: 0, ..INFO }, 9999 * MIB), None);
    }
}
