//! The driver of one machine. It looks at the state, chooses an action with [`next_action`], carries it out, and
//! repeats.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use garret_api::Problem;
use garret_api::agent::EnvironmentStatus;
use garret_api::runner::{Desired, MachinePhase};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::{self, AbortHandle, JoinError, JoinSet};
use tokio::time::Instant;

use super::backoff::backoff;
use super::boots::Boots;
use super::disk_failures::DiskFailures;
use super::plan::{self, Action, Observed, Vmm, Wish, Work, next_action};
use super::runs;
use crate::daemon::Daemon;
use crate::daemon::memory::PauseState;
use crate::daemon::state::{EnvironmentRow, MachineRow, environments, machines};
use crate::daemon::vmm::VmmProcess;
use crate::host::NetworkConfig;

/// How often the agent is asked for the state of its containers.
const REFRESH: Duration = Duration::from_secs(15);
/// Timeout of that request: a guest that hangs delays only its own machine, and only for this long.
pub(super) const REFRESH_DEADLINE: Duration = Duration::from_secs(3);
/// How long a booting machine keeps others from starting. A slower boot does not delay the rest.
const START_TURN: Duration = Duration::from_secs(20);
/// How long a starting environment keeps others of its machine from starting. Lifecycle commands may never end.
const BEGIN_TURN: Duration = Duration::from_secs(60);
/// The longest pause after a step that failed, such as a write to a full disk.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// The pause after work whose result could not be written to the state.
const WRITE_RETRY: Duration = Duration::from_secs(5);

/// One machine's driver. Everything that it knows and the state does not can be found again: a new driver adopts the
/// machine.
pub(super) struct Driver {
    pub(super) daemon: Arc<Daemon>,
    pub(super) uid: u32,
    poke: Arc<Notify>,
    pub(super) vmm: Life,
    /// When the VMM was launched or adopted.
    pub(super) since: Instant,
    /// The VMM was started before this driver.
    pub(super) adopted: bool,
    /// The coming end of the VMM was requested.
    pub(super) asked: bool,
    /// Why the runner itself ended the VMM without a request.
    pub(super) blame: Option<String>,
    pub(super) reboots: Vec<Instant>,
    pub(super) disk: DiskFailures,
    /// Changes when the machine needs other resolvers.
    pub(super) network: watch::Receiver<NetworkConfig>,
    work: HashMap<String, Doing>,
    tasks: JoinSet<()>,
    /// Limits how many machines start at once.
    starts: Arc<Semaphore>,
    /// This machine's permit to start; it ends by itself.
    turn: JoinSet<()>,
    /// The VMM was launched and its agent has not answered yet.
    booting: bool,
    boots: Boots,
}

/// A task that works on an environment.
struct Doing {
    work: Work,
    since: Instant,
    task: AbortHandle,
}

/// The VMM's life.
#[derive(Debug)]
pub(super) enum Life {
    Absent,
    Booting(VmmProcess),
    Ready(VmmProcess),
    Dead,
}

impl Life {
    /// Returns when the VMM has ended; never returns if there is no VMM.
    pub(super) async fn ended(&self) {
        match self {
            Life::Booting(process) | Life::Ready(process) => process.ended().await,
            Life::Absent | Life::Dead => std::future::pending().await,
        }
    }
}

impl Doing {
    /// Whether it started so recently that other environments of its machine wait.
    fn begins(&self) -> bool {
        self.work.wish == Wish::Run && self.since.elapsed() < BEGIN_TURN
    }
}

impl Driver {
    pub(super) fn new(daemon: Arc<Daemon>, uid: u32, poke: Arc<Notify>, starts: Arc<Semaphore>) -> Self {
        let network = daemon.network.subscribe();
        Self {
            daemon,
            uid,
            poke,
            network,
            vmm: Life::Absent,
            since: Instant::now(),
            adopted: false,
            asked: false,
            blame: None,
            reboots: Vec::new(),
            disk: DiskFailures::default(),
            work: HashMap::new(),
            tasks: JoinSet::new(),
            starts,
            turn: JoinSet::new(),
            booting: false,
            boots: Boots::default(),
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
                Ok(false) => return self.tell_life(false),
                Err(error) => {
                    failures += 1;
                    tracing::error!(
                        uid = self.uid,
                        failures,
                        "a step of the machine's driver failed; it is retried: {error:#}"
                    );
                    self.pause(failures).await;
                }
            }
        }
    }

    /// One look and one action. Returns false if the machine is gone.
    async fn step(&mut self) -> anyhow::Result<bool> {
        self.tell_life(self.lives());
        // Only `rest` waits for these tasks to end.
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.forget_work(ended);
        }
        let Some((machine, environments)) = self.look().await? else { return Ok(false) };
        let wish = self.wish(&machine);
        self.count_boots(&machine, wish);
        let noted = self.note(&machine).await;
        let action = next_action(&self.observe(&machine, &environments), wish);
        tracing::debug!(machine = machine.name, ?action);
        if action != Action::Launch && !matches!(self.vmm, Life::Booting(_)) {
            self.turn = JoinSet::new();
        }
        match action {
            Action::Rest => {
                noted?;
                self.rest(&machine, &environments).await?;
            }
            Action::Launch if self.turn.is_empty() => self.queue().await?,
            Action::Launch => {
                self.tell_life(true);
                self.booting = true;
                self.launch(&machine).await?;
            }
            Action::Greet => self.greet(&machine).await?,
            Action::Halt => self.halt(&machine).await?,
            Action::Bury => self.bury(&machine).await?,
            Action::Erase => self.erase(&machine).await?,
            Action::Cancel(id) => self.cancel(&id),
            Action::Begin(id, work) => {
                let row = environments.into_iter().find(|row| row.id == id).context("a planned environment")?;
                self.begin(&machine, row, work).await?;
            }
        }
        Ok(true)
    }

    /// Waits after a failed step; a poke or the VMM's end interrupts the wait.
    pub(super) async fn pause(&mut self, failures: u32) {
        tokio::select! {
            () = tokio::time::sleep(backoff(failures, PAUSE_MAX)) => {}
            () = self.poke.notified() => {}
            () = self.vmm.ended() => self.vmm = Life::Dead,
        }
    }

    pub(super) fn lives(&self) -> bool {
        matches!(self.vmm, Life::Booting(_) | Life::Ready(_))
    }

    /// Reports to the daemon whether there is a VMM. The daemon may have to wait for its end when the state cannot be
    /// read.
    fn tell_life(&self, lives: bool) {
        let uid = self.uid;
        self.daemon.live.send_if_modified(|live| if lives { live.insert(uid) } else { live.remove(&uid) });
    }

    /// Waits for a permit to start beside other starting machines.
    async fn queue(&mut self) -> anyhow::Result<()> {
        tokio::select! {
            admitted = self.starts.clone().acquire_owned() => {
                let admitted = admitted?;
                self.turn.spawn(async move {
                    tokio::time::sleep(START_TURN).await;
                    drop(admitted);
                });
            }
            () = self.poke.notified() => {}
        }
        Ok(())
    }

    /// Counts how the last boot ended.
    fn count_boots(&mut self, machine: &MachineRow, wish: Wish) {
        match self.vmm {
            Life::Ready(_) => {
                self.booting = false;
                self.boots.reset();
            }
            Life::Absent => {
                let ended = std::mem::take(&mut self.booting);
                if ended && machine.phase == MachinePhase::Failed {
                    self.boots.fail(Instant::now());
                }
            }
            Life::Booting(_) | Life::Dead => {}
        }
        if wish != Wish::Run {
            self.boots.reset();
        }
    }

    /// Writes facts about the VMM that an earlier step could not write.
    async fn note(&self, machine: &MachineRow) -> rusqlite::Result<()> {
        let (Life::Booting(process) | Life::Ready(process)) = &self.vmm else { return Ok(()) };
        let arrived = matches!(self.vmm, Life::Ready(_)) && machine.phase == MachinePhase::Starting;
        if machine.vmm.as_ref() == Some(&process.id) && !arrived {
            return Ok(());
        }
        let (uid, id) = (self.uid, process.id.clone());
        self.daemon
            .write(move |db| {
                machines::set_vmm(db, uid, Some(&id))?;
                if arrived { machines::set_phase(db, uid, MachinePhase::Running, "running") } else { Ok(()) }
            })
            .await
    }

    pub(super) async fn look(&self) -> rusqlite::Result<Option<(MachineRow, Vec<EnvironmentRow>)>> {
        let uid = self.uid;
        self.daemon
            .read(move |db| {
                let Some(machine) = machines::get(db, uid)? else { return Ok(None) };
                Ok(Some((machine, environments::of_machine(db, uid)?)))
            })
            .await
    }

    pub(super) fn wish(&self, machine: &MachineRow) -> Wish {
        match Wish::new(machine.desired, machine.removed) {
            Wish::Run if self.daemon.must_stand(self.uid) => Wish::Stand,
            wish => wish,
        }
    }

    fn observe(&self, machine: &MachineRow, environments: &[EnvironmentRow]) -> Observed {
        let vmm = match self.vmm {
            Life::Absent => Vmm::Absent,
            Life::Booting(_) if self.adopted => Vmm::Adopted,
            Life::Booting(_) => Vmm::Booting,
            Life::Ready(_) => Vmm::Ready,
            Life::Dead => Vmm::Dead,
        };
        let environments = environments
            .iter()
            .map(|row| {
                let doing = self.work.get(&row.id);
                plan::Environment {
                    id: row.id.clone(),
                    wish: Wish::new(row.desired, row.removed),
                    generation: row.generation,
                    observed_generation: row.observed_generation,
                    work: doing.map(|doing| doing.work),
                    beginning: doing.is_some_and(Doing::begins),
                }
            })
            .collect();
        let failed = machine.phase == MachinePhase::Failed && !self.boots.due(Instant::now());
        Observed { vmm, failed, environments }
    }

    /// Waits until something changes.
    async fn rest(&mut self, machine: &MachineRow, environments: &[EnvironmentRow]) -> anyhow::Result<()> {
        if matches!(self.vmm, Life::Absent) && environments.iter().any(|row| !row.settled() && !row.removed) {
            self.settle_absent().await?;
        }
        let ready = matches!(self.vmm, Life::Ready(_));
        let next_boot = self.boots.next();
        tokio::select! {
            () = self.poke.notified() => {}
            () = self.vmm.ended() => self.vmm = Life::Dead,
            Some(ended) = self.tasks.join_next_with_id() => self.forget_work(ended),
            () = tokio::time::sleep(REFRESH), if ready => {
                self.refresh(machine).await?;
                self.tell_resolvers(machine).await;
                self.look_at_disk(machine).await;
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
        self.work.retain(|_, doing| doing.task.id() != task);
    }

    /// Ends runs that need a machine when there is none: a stop is done, and a start fails unless the machine will
    /// start. A removal waits for the machine.
    async fn settle_absent(&self) -> rusqlite::Result<()> {
        let uid = self.uid;
        self.daemon
            .write(move |db| {
                let Some(machine) = machines::get(db, uid)? else { return Ok(()) };
                let starts =
                    machine.desired == Desired::Running && !machine.removed && machine.phase != MachinePhase::Failed;
                let problem = Problem::new("stopped", format!("the machine does not run: {}", machine.reason));
                for row in environments::of_machine(db, uid)? {
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
    pub(super) async fn refresh(&mut self, machine: &MachineRow) -> rusqlite::Result<()> {
        if self.daemon.memory.pauses.state(self.uid) == PauseState::Paused {
            return Ok(());
        }
        let agent = self.daemon.agent(&machine.name, REFRESH_DEADLINE);
        let statuses: Vec<EnvironmentStatus> = tokio::select! {
            () = self.vmm.ended() => return Ok(()),
            statuses = agent.get("/v1/environments") => match statuses {
                Ok(statuses) => statuses,
                Err(error) => {
                    tracing::warn!(machine = machine.name, "the agent does not say how its environments are: {error}");
                    return Ok(());
                }
            },
        };
        let uid = self.uid;
        let changed = self.daemon.read(move |db| runs::observe_all(db, uid, statuses)).await?;
        if changed {
            self.daemon.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
        Ok(())
    }

    /// Sends the machine new resolvers. A machine that is paused or does not answer gets them at a later look.
    async fn tell_resolvers(&mut self, machine: &MachineRow) {
        let paused = self.daemon.memory.pauses.state(self.uid) == PauseState::Paused;
        if paused || !self.network.has_changed().unwrap_or(false) {
            return;
        }
        let told = self.network.borrow_and_update().clone();
        let setup = self.machine_setup(machine).await;
        let agent = self.daemon.agent(&machine.name, REFRESH_DEADLINE);
        if let Err(error) = agent.send(hyper::Method::PUT, "/v1/machine", Some(&setup)).await {
            tracing::warn!(machine = machine.name, resolvers = ?told.resolvers, "the agent did not accept the new resolvers: {error}");
            self.network.mark_changed();
        }
    }

    /// Starts work on an environment.
    async fn begin(&mut self, machine: &MachineRow, row: EnvironmentRow, work: Work) -> anyhow::Result<()> {
        let id = row.id.clone();
        let run = runs::Run { daemon: self.daemon.clone(), machine: machine.name.clone(), row };
        let machine = machine.clone();
        let handle = self.tasks.spawn(async move {
            let _needed = run.daemon.wake(&machine).await;
            let id = run.row.id.clone();
            let done = match work.wish {
                Wish::Run => run.share_and_bring_up(&machine).await,
                Wish::Stand => run.stop().await,
                Wish::Vanish => run.remove().await,
            };
            if let Err(error) = done {
                tracing::error!(environment = id, "cannot record the result: {error}");
                tokio::time::sleep(WRITE_RETRY).await;
            }
        });
        self.work.insert(id, Doing { work, since: Instant::now(), task: handle });
        Ok(())
    }

    pub(super) fn cancel(&mut self, id: &str) {
        if let Some(doing) = self.work.remove(id) {
            doing.task.abort();
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
