//! Memory: each second this loop measures the host and its machines (`measure`), decides (`policy`, pure), carries the
//! orders out (`act`) and publishes the figures (`report`).
//!
//! Nothing is stored: after a restart, the state is read again from the VMMs, the agents and the control groups.

mod act;
mod measure;
mod policy;
mod report;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use garret_api::MachineId;
use garret_api::runner::{Desired, EventKind, MachinePhase, Means};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

pub(super) use act::{PauseState, WakeGuard};
pub use measure::measure_host;
pub use policy::{History, MachineView, Order, decide};
pub(super) use report::{LogOnChange, Snapshot, render_metrics};

use super::Daemon;
use super::dedicated_runtime::run_on_dedicated_runtime;
use super::promises::promises;
use super::state::{MachineRow, environments, events, machines};
use act::PauseControl;
use measure::Watched;
use policy::{Decision, HostView, Notice};
use report::{host_memory, machine_memory};

/// The interval between two cycles …
const INTERVAL: Duration = Duration::from_secs(1);
/// … and the minimum, even when an event requests an earlier cycle.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// The delay before a loop that died is restarted.
const RETRY: Duration = Duration::from_secs(1);
/// How long a request waits for the first cycle after the daemon starts.
const FIRST_CYCLE: Duration = Duration::from_secs(5);

/// The state that the loop shares with the rest of the daemon.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Which machines are paused.
    pub pauses: PauseControl,
    /// Requests a cycle before the interval ends.
    pub wake: Notify,
    snapshot: watch::Sender<Option<Arc<Snapshot>>>,
}

impl Memory {
    /// The result of the last cycle; `None` if there was none within `FIRST_CYCLE`.
    pub(super) async fn snapshot(&self) -> Option<Arc<Snapshot>> {
        let mut snapshot = self.snapshot.subscribe();
        let found = timeout(FIRST_CYCLE, snapshot.wait_for(Option::is_some)).await.ok()?.ok()?;
        (*found).clone()
    }

    /// Publishes the result of a cycle to all readers.
    pub(super) fn publish(&self, snapshot: Snapshot) {
        self.snapshot.send_replace(Some(Arc::new(snapshot)));
    }
}

/// Runs the loop until the daemon ends, on a dedicated runtime. Restarts the loop if it dies.
pub(super) async fn supervise(daemon: Arc<Daemon>) {
    loop {
        if let Err(error) = run_on_dedicated_runtime("memory", MemoryLoop::new(daemon.clone()).run()).await {
            tracing::error!("the memory loop failed and is restarted: {error:#}");
        }
        sleep(RETRY).await;
    }
}

/// The loop and its state between two cycles.
struct MemoryLoop {
    daemon: Arc<Daemon>,
    history: History,
    watched: BTreeMap<MachineId, Watched>,
    squeezes: BTreeMap<(String, Means), u64>,
    last: Instant,
    problem: LogOnChange,
    psi: LogOnChange,
}

impl MemoryLoop {
    fn new(daemon: Arc<Daemon>) -> Self {
        Self {
            daemon,
            history: History::default(),
            watched: BTreeMap::new(),
            squeezes: BTreeMap::new(),
            last: Instant::now(),
            problem: LogOnChange::of("watching memory"),
            psi: LogOnChange::of("memory pressure of the host"),
        }
    }

    async fn run(mut self) {
        loop {
            let next = Instant::now() + INTERVAL;
            let ran = self.run_cycle().await;
            self.problem.note(ran.err().map(|error| format!("{error:#}")));
            sleep(INTERVAL_MIN).await;
            // A wait that ends early means that a cycle was requested.
            let _ = tokio::time::timeout_at(next, self.daemon.memory.wake.notified()).await;
        }
    }

    async fn run_cycle(&mut self) -> anyhow::Result<()> {
        let (rows, busy) = self.daemon.read(|db| Ok((machines::all(db)?, environments::busy(db)?))).await?;
        self.watch(&rows);
        self.daemon.memory.pauses.retain(|id| rows.iter().any(|row| row.id == id));
        let host = self.measure().await?;
        let views = self.views(&rows, &busy).await;
        let elapsed = self.last.elapsed();
        self.last = Instant::now();
        let decision = decide(&mut self.history, &host, &views, elapsed);
        for order in &decision.orders {
            tracing::debug!(?order);
            if let Some(watched) = self.watched.get(&machine_of(order)) {
                watched.order(order);
            }
        }
        self.publish(&rows, &host, &views, &decision);
        self.report(&rows, decision.notices).await
    }

    /// Watches exactly the VMMs that exist.
    fn watch(&mut self, rows: &[MachineRow]) {
        let vmms: BTreeMap<MachineId, _> =
            rows.iter().filter_map(|row| Some((row.id, (row, row.vmm.as_ref()?)))).collect();
        self.watched.retain(|id, watched| vmms.get(id).is_some_and(|(_, vmm)| watched.is(vmm)));
        for (id, (row, vmm)) in vmms {
            self.watched.entry(id).or_insert_with(|| Watched::new(&self.daemon, row, vmm.clone()));
        }
    }

    async fn measure(&self) -> anyhow::Result<HostView> {
        let reserve = self.daemon.host().reserve_mib << 20;
        let host = tokio::task::spawn_blocking(move || measure_host(reserve)).await??;
        let missing = host.pressure_some.is_none();
        self.psi.note(missing.then(|| "the kernel does not tell it (psi=1 would): free memory alone decides".into()));
        Ok(host)
    }

    /// Measures all machines at once.
    async fn views(&mut self, rows: &[MachineRow], busy: &BTreeSet<MachineId>) -> Vec<MachineView> {
        let rows: BTreeMap<MachineId, &MachineRow> = rows.iter().map(|row| (row.id, row)).collect();
        let measured = self.watched.iter_mut().filter_map(|(id, watched)| {
            let row = *rows.get(id)?;
            Some(watched.measure(&self.daemon, row, is_needed(row, busy)))
        });
        join_all(measured).await.into_iter().flatten().collect()
    }

    fn publish(&self, rows: &[MachineRow], host: &HostView, views: &[MachineView], decision: &Decision) {
        let views_by_id: BTreeMap<MachineId, &MachineView> = views.iter().map(|view| (view.id, view)).collect();
        let reports_of_rows = || rows.iter().filter_map(|row| Some((row, self.watched.get(&row.id)?.reports())));
        let machines = reports_of_rows().filter_map(|(row, reports)| {
            let view = views_by_id.get(&row.id)?;
            Some((row.owner, machine_memory(&row.developer, reports.oom_kills(), view, decision)))
        });
        // Without the memory that the VMMs may need, like the machines' own figures.
        let started = |row: &MachineRow| views_by_id.get(&row.id).map_or(0, |view| (view.promised >> 20) as u32);
        let promises = promises(rows, started, 0);
        self.daemon.memory.publish(Snapshot {
            host: host_memory(host, &promises, views),
            machines: machines.collect(),
            broken_reports: reports_of_rows().map(|(row, reports)| (row.developer.clone(), reports.broken())).collect(),
            squeezes: self.squeezes.clone(),
        });
    }

    /// Logs and counts the notices, and stores them as events.
    async fn report(&mut self, rows: &[MachineRow], notices: Vec<Notice>) -> anyhow::Result<()> {
        // Also drops the counts of removed machines.
        self.squeezes.retain(|(developer, _), _| rows.iter().any(|row| row.developer == *developer));
        for notice in &notices {
            if let Some(row) = rows.iter().find(|row| row.id == notice.id) {
                tracing::info!(machine = %row.id, means = ?notice.means, "{}", notice.reason);
                *self.squeezes.entry((row.developer.clone(), notice.means)).or_default() += 1;
            }
        }
        if notices.is_empty() {
            return Ok(());
        }
        let kept = self.daemon.write(move |db| {
            for Notice { id, means, bytes, reason } in notices {
                events::add(db, id, None, &EventKind::Squeeze { means, bytes, reason })?;
            }
            Ok(())
        });
        Ok(kept.await?)
    }
}

/// Whether the machine has work to do, so that it must not be paused.
fn is_needed(machine: &MachineRow, busy: &BTreeSet<MachineId>) -> bool {
    machine.phase != MachinePhase::Running
        || machine.desired != Desired::Running
        || machine.removed
        || busy.contains(&machine.id)
}

fn machine_of(order: &Order) -> MachineId {
    match order {
        Order::Limit { id, .. }
        | Order::Squeeze { id, .. }
        | Order::Swap { id, .. }
        | Order::Pause { id }
        | Order::Resume { id } => *id,
    }
}
