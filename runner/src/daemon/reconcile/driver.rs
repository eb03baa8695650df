//! The driver of one machine. It reads the state, chooses an action with [`next_action`], carries it out, and
//! repeats.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use garret_api::agent::EnvironmentStatus;
use garret_api::runner::{Desired, MachinePhase, Operation};
use garret_api::vmm::Metrics;
use garret_api::{Code, MachineId, Problem};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::{self, AbortHandle, JoinError, JoinSet};
use tokio::time::Instant;
use tracing::Instrument;

use super::at_rest;
use super::backoff::backoff;
use super::boot_retry::BootRetry;
use super::disk_failures::{self, DiskFailures};
use super::environment_run;
use super::plan::{self, Action, Goal, Observed, Vmm, Work, next_action};
use crate::daemon::Daemon;
use crate::daemon::memory::PauseState;
use crate::daemon::state::{EnvironmentRow, MachineRow, StoreError, environments, machines, operations};
use crate::daemon::vmm::VmmProcess;
use crate::host::NetworkConfig;

/// How often the agent is asked for the state of its containers.
const REFRESH: Duration = Duration::from_secs(15);
/// Timeout of that request: a guest that hangs delays only its own machine, and only for this long.
pub(super) const REFRESH_DEADLINE: Duration = Duration::from_secs(3);
/// How long a booting machine keeps others from starting. A slower boot does not delay the rest.
const START_PERMIT_TIME: Duration = Duration::from_secs(20);
/// How long a starting environment keeps others of its machine from starting. Lifecycle commands may never end.
const BEGINNING_TIME: Duration = Duration::from_secs(60);
/// The longest pause after a step that failed, such as a write to a full disk.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// The pause after work whose result could not be written to the state.
const WRITE_RETRY: Duration = Duration::from_secs(5);

/// One machine's driver. Everything that it knows and the state does not can be found again: a new driver adopts the
/// machine.
pub(super) struct Driver {
    pub(super) daemon: Arc<Daemon>,
    pub(super) id: MachineId,
    poke: Arc<Notify>,
    pub(super) vmm: VmmState,
    /// When the VMM was launched or adopted.
    pub(super) since: Instant,
    /// The VMM was started before this driver.
    pub(super) adopted: bool,
    /// The coming end of the VMM was requested.
    pub(super) asked: bool,
    /// Why the runner itself ended the VMM without a request.
    pub(super) failure: Option<String>,
    pub(super) reboots: Vec<Instant>,
    pub(super) disk: DiskFailures,
    /// Changes when the machine needs other resolvers.
    pub(super) network: watch::Receiver<NetworkConfig>,
    work: HashMap<String, RunningWork>,
    tasks: JoinSet<()>,
    /// Limits how many machines start at once.
    starts: Arc<Semaphore>,
    /// This machine's permit to start; it ends by itself.
    start_permit: JoinSet<()>,
    /// The VMM was launched and its agent has not answered yet.
    booting: bool,
    boot_retry: BootRetry,
}

/// A task that works on an environment.
struct RunningWork {
    work: Work,
    since: Instant,
    task: AbortHandle,
}

/// The VMM's state, with its process.
#[derive(Debug)]
pub(super) enum VmmState {
    Absent,
    Booting(VmmProcess),
    Ready(VmmProcess),
    Dead,
}

impl VmmState {
    /// Returns when the VMM has ended; never returns if there is no VMM.
    pub(super) async fn ended(&self) {
        match self {
            VmmState::Booting(process) | VmmState::Ready(process) => process.ended().await,
            VmmState::Absent | VmmState::Dead => std::future::pending().await,
        }
    }
}

impl RunningWork {
    /// Whether it started so recently that other environments of its machine wait.
    fn is_beginning(&self) -> bool {
        self.work.goal == Goal::Run && self.since.elapsed() < BEGINNING_TIME
    }
}

impl Driver {
    pub(super) fn new(daemon: Arc<Daemon>, id: MachineId, poke: Arc<Notify>, starts: Arc<Semaphore>) -> Self {
        let network = daemon.network.subscribe();
        Self {
            daemon,
            id,
            poke,
            network,
            vmm: VmmState::Absent,
            since: Instant::now(),
            adopted: false,
            asked: false,
            failure: None,
            reboots: Vec::new(),
            disk: DiskFailures::default(),
            work: HashMap::new(),
            tasks: JoinSet::new(),
            starts,
            start_permit: JoinSet::new(),
            booting: false,
            boot_retry: BootRetry::default(),
        }
    }

    /// Drives the machine until it is gone. A step that fails is retried. The driver's memory is kept, so that a
    /// machine can be stopped while the state cannot be written.
    pub(super) async fn run(mut self) {
        let mut failures = 0;
        self.adopt_with_retries().await;
        loop {
            match self.step().await {
                Ok(true) => failures = 0,
                Ok(false) => return self.report_vmm(false),
                Err(error) => {
                    failures += 1;
                    tracing::error!(
                        machine = %self.id,
                        failures,
                        "a step of the machine's driver failed; it is retried: {error:#}"
                    );
                    self.back_off(failures).await;
                }
            }
        }
    }

    /// Reads the state and carries out one action. Returns false if the machine is gone.
    async fn step(&mut self) -> anyhow::Result<bool> {
        self.report_vmm(self.has_vmm());
        // Only `wait` waits for these tasks to end.
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.forget_work(ended);
        }
        let Some((machine, environments, operation)) = self.read_rows().await? else { return Ok(false) };
        let goal = self.goal(&machine);
        self.track_boot(&machine, goal);
        let recorded = self.record_vmm(&machine).await;
        let observed = self.observe(&machine, &environments);
        let action = next_action(&observed, goal);
        tracing::debug!(machine = %machine.id, ?action);
        if action != Action::Launch && !matches!(self.vmm, VmmState::Booting(_)) {
            self.start_permit = JoinSet::new();
        }
        match action {
            Action::Wait => {
                recorded?;
                if let Some(operation) = operation
                    && let Some(outcome) = at_rest::outcome(&operation, observed.vmm, goal, &machine)
                {
                    self.daemon.write(move |db| operations::end_one(db, &operation.id, &outcome)).await?;
                }
                self.wait(&machine, &environments).await?;
            }
            Action::Launch if self.start_permit.is_empty() => self.acquire_start_permit().await?,
            Action::Launch => {
                self.report_vmm(true);
                self.booting = true;
                self.launch(&machine).await?;
            }
            Action::AwaitAgent => self.await_agent(&machine).await?,
            Action::Halt => self.halt(&machine).await?,
            Action::CleanUp => self.clean_up(&machine).await?,
            Action::Delete => self.delete(&machine).await?,
            Action::Cancel(id) => self.cancel(&id),
            Action::Begin(id, work) => {
                let row = environments.into_iter().find(|row| row.id == id).context("a planned environment")?;
                self.begin(&machine, row, work).await?;
            }
        }
        Ok(true)
    }

    /// Waits after a failed step; a poke or the VMM's end interrupts the wait.
    pub(super) async fn back_off(&mut self, failures: u32) {
        tokio::select! {
            () = tokio::time::sleep(backoff(failures, PAUSE_MAX)) => {}
            () = self.poke.notified() => {}
            () = self.vmm.ended() => self.vmm = VmmState::Dead,
        }
    }

    pub(super) fn has_vmm(&self) -> bool {
        matches!(self.vmm, VmmState::Booting(_) | VmmState::Ready(_))
    }

    /// Reports to the daemon whether there is a VMM. The daemon may have to wait for its end when the state cannot be
    /// read.
    fn report_vmm(&self, exists: bool) {
        let machine = self.id;
        self.daemon.live.send_if_modified(|live| if exists { live.insert(machine) } else { live.remove(&machine) });
    }

    /// Waits for a permit to start beside other starting machines.
    async fn acquire_start_permit(&mut self) -> anyhow::Result<()> {
        tokio::select! {
            admitted = self.starts.clone().acquire_owned() => {
                let admitted = admitted?;
                self.start_permit.spawn(async move {
                    tokio::time::sleep(START_PERMIT_TIME).await;
                    drop(admitted);
                });
            }
            () = self.poke.notified() => {}
        }
        Ok(())
    }

    /// Records how the last boot ended.
    fn track_boot(&mut self, machine: &MachineRow, goal: Goal) {
        match self.vmm {
            VmmState::Ready(_) => {
                self.booting = false;
                self.boot_retry.reset();
            }
            VmmState::Absent => {
                let ended = std::mem::take(&mut self.booting);
                if ended && machine.phase == MachinePhase::Failed {
                    self.boot_retry.fail(Instant::now());
                }
            }
            VmmState::Booting(_) | VmmState::Dead => {}
        }
        if goal != Goal::Run {
            self.boot_retry.reset();
        }
    }

    /// Writes facts about the VMM that an earlier step could not write.
    async fn record_vmm(&self, machine: &MachineRow) -> Result<(), StoreError> {
        let (VmmState::Booting(process) | VmmState::Ready(process)) = &self.vmm else { return Ok(()) };
        let became_ready = matches!(self.vmm, VmmState::Ready(_)) && machine.phase == MachinePhase::Starting;
        if machine.vmm.as_ref() == Some(&process.id) && !became_ready {
            return Ok(());
        }
        let (machine, id) = (self.id, process.id.clone());
        self.daemon
            .write(move |db| {
                machines::set_vmm(db, machine, Some(&id))?;
                if became_ready { machines::set_phase(db, machine, MachinePhase::Running, "running") } else { Ok(()) }
            })
            .await
    }

    /// The machine, its environments, and the operation on it that is in progress, all of one moment.
    pub(super) async fn read_rows(
        &self,
    ) -> Result<Option<(MachineRow, Vec<EnvironmentRow>, Option<Operation>)>, StoreError> {
        let id = self.id;
        self.daemon
            .read(move |db| {
                let Some(machine) = machines::get(db, id)? else { return Ok(None) };
                Ok(Some((machine, environments::of_machine(db, id)?, operations::in_progress(db, id, None)?)))
            })
            .await
    }

    pub(super) fn goal(&self, machine: &MachineRow) -> Goal {
        match Goal::new(machine.desired, machine.removed) {
            Goal::Run if self.daemon.must_stop(self.id) => Goal::Stop,
            goal => goal,
        }
    }

    fn observe(&self, machine: &MachineRow, environments: &[EnvironmentRow]) -> Observed {
        let vmm = match self.vmm {
            VmmState::Absent => Vmm::Absent,
            VmmState::Booting(_) if self.adopted => Vmm::Adopted,
            VmmState::Booting(_) => Vmm::Booting,
            VmmState::Ready(_) => Vmm::Ready,
            VmmState::Dead => Vmm::Dead,
        };
        let environments = environments
            .iter()
            .map(|row| {
                let running = self.work.get(&row.id);
                plan::Environment {
                    id: row.id.clone(),
                    goal: Goal::new(row.desired, row.removed),
                    generation: row.generation,
                    observed_generation: row.observed_generation,
                    work: running.map(|running| running.work),
                    beginning: running.is_some_and(RunningWork::is_beginning),
                }
            })
            .collect();
        let failed = machine.phase == MachinePhase::Failed && !self.boot_retry.due(Instant::now());
        Observed { vmm, failed, environments }
    }

    /// Waits until something changes.
    async fn wait(&mut self, machine: &MachineRow, environments: &[EnvironmentRow]) -> anyhow::Result<()> {
        if matches!(self.vmm, VmmState::Absent) && environments.iter().any(|row| !row.settled() && !row.removed) {
            self.settle_absent().await?;
        }
        let ready = matches!(self.vmm, VmmState::Ready(_));
        let next_boot = self.boot_retry.next();
        tokio::select! {
            () = self.poke.notified() => {}
            () = self.vmm.ended() => self.vmm = VmmState::Dead,
            Some(ended) = self.tasks.join_next_with_id() => self.forget_work(ended),
            () = tokio::time::sleep(REFRESH), if ready => {
                self.refresh(machine).await?;
                self.send_resolvers(machine).await;
                self.check_disk(machine).await;
            }
            () = tokio::time::sleep_until(next_boot.unwrap_or(self.since)), if next_boot.is_some() => {}
        }
        Ok(())
    }

    fn forget_work(&mut self, ended: Result<(task::Id, ()), JoinError>) {
        let task = match ended {
            Ok((task, ())) => task,
            Err(error) => error.id(),
        };
        self.work.retain(|_, running| running.task.id() != task);
    }

    /// Ends runs that need a machine when there is none: a stop is done, and a start fails unless the machine will
    /// start. A removal waits for the machine.
    async fn settle_absent(&self) -> Result<(), StoreError> {
        let id = self.id;
        self.daemon
            .write(move |db| {
                let Some(machine) = machines::get(db, id)? else { return Ok(()) };
                let starts =
                    machine.desired == Desired::Running && !machine.removed && machine.phase != MachinePhase::Failed;
                let problem = Problem::new(Code::Stopped, format!("the machine does not run: {}", machine.reason));
                for row in environments::of_machine(db, id)? {
                    let waits = row.removed || (starts && row.desired == Desired::Running);
                    if !waits && !row.settled() {
                        environments::end_without_machine(db, row, Some(&problem))?;
                    }
                }
                Ok(())
            })
            .await
    }

    /// Asks the agent for the state of its containers, and records those that stopped by themselves.
    pub(super) async fn refresh(&mut self, machine: &MachineRow) -> Result<(), StoreError> {
        if self.daemon.memory.pauses.state(self.id) == PauseState::Paused {
            return Ok(());
        }
        let agent = self.daemon.agent(machine.id, REFRESH_DEADLINE);
        let statuses: Vec<EnvironmentStatus> = tokio::select! {
            () = self.vmm.ended() => return Ok(()),
            statuses = agent.get("/v1/environments") => match statuses {
                Ok(statuses) => statuses,
                Err(error) => {
                    tracing::warn!(machine = %machine.id, "the agent does not report its environments: {error}");
                    return Ok(());
                }
            },
        };
        let id = self.id;
        self.daemon.observe(move |db| environment_run::observe_all(db, id, statuses)).await
    }

    /// Sends the machine new resolvers. A machine that is paused or does not answer gets them at a later refresh.
    async fn send_resolvers(&mut self, machine: &MachineRow) {
        let paused = self.daemon.memory.pauses.state(self.id) == PauseState::Paused;
        if paused || !self.network.has_changed().unwrap_or(false) {
            return;
        }
        let network = self.network.borrow_and_update().clone();
        let setup = self.machine_setup(machine).await;
        let agent = self.daemon.agent(machine.id, REFRESH_DEADLINE);
        if let Err(error) = agent.send(hyper::Method::PUT, "/v1/machine", Some(&setup)).await {
            tracing::warn!(machine = %machine.id, resolvers = ?network.resolvers, "the agent did not accept the new resolvers: {error}");
            self.network.mark_changed();
        }
    }

    /// Asks the VMM whether the host failed to read or write its disk, and reports new failures.
    async fn check_disk(&mut self, machine: &MachineRow) {
        let vmm = self.daemon.vmm(machine.id, REFRESH_DEADLINE);
        // A VMM that does not answer is asked again at the next check.
        let Ok(metrics) = vmm.get::<Metrics>("/v1/metrics").await else { return };
        if self.disk.begin(disk_failures::count(&metrics)) {
            let said = "the host cannot write the machine's data disk, and what a program has synced is kept: if the host's \
                        disk is full, writes wait until there is space; see the VMM's log for another reason";
            self.report(machine, Problem::new(Code::HostDisk, said)).await;
        }
    }

    /// Starts work on an environment.
    async fn begin(&mut self, machine: &MachineRow, row: EnvironmentRow, work: Work) -> anyhow::Result<()> {
        let id = row.id.clone();
        let run = environment_run::EnvironmentRun { daemon: self.daemon.clone(), owner: machine.owner, row };
        let machine = machine.clone();
        // Of the level that is always logged, for the lines of the whole run.
        let span = tracing::error_span!("environment", id, generation = run.row.generation);
        let work_on = async move {
            let _needed = run.daemon.wake(&machine).await;
            let done = match work.goal {
                Goal::Run => run.share_and_bring_up(&machine).await,
                Goal::Stop => run.stop().await,
                Goal::Remove => run.remove().await,
            };
            if let Err(error) = done {
                tracing::error!("cannot record the result: {error}");
                tokio::time::sleep(WRITE_RETRY).await;
            }
        };
        let handle = self.tasks.spawn(work_on.instrument(span));
        self.work.insert(id, RunningWork { work, since: Instant::now(), task: handle });
        Ok(())
    }

    pub(super) fn cancel(&mut self, id: &str) {
        if let Some(running) = self.work.remove(id) {
            running.task.abort();
        }
    }

    pub(super) async fn cancel_all(&mut self) {
        self.work.clear();
        self.tasks.shutdown().await;
    }

    /// Waits for a poke, which means that the desired state has changed.
    pub(super) async fn poked(&self) {
        self.poke.notified().await;
    }
}
