//! The driver of one machine: looks, decides by [`next_action`], does it, and looks again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use garret_api::agent::{EnvironmentPhase, EnvironmentStatus};
use garret_api::runner::{Desired, MachinePhase};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::plan::{self, Action, Observed, Vmm, Wish, Work, next_action};
use super::runs;
use crate::daemon::Daemon;
use crate::daemon::memory::State;
use crate::daemon::state::{EnvironmentRow, MachineRow, environments, machines};
use crate::daemon::vmm::VmmProcess;
use crate::host::NetworkConfig;

/// How often the agent is asked how its containers are.
const REFRESH: Duration = Duration::from_secs(15);
/// How long that may take: a guest that hangs holds up only its own machine, and only so long.
const REFRESH_DEADLINE: Duration = Duration::from_secs(3);

/// One machine's driver. Everything it knows besides the state can be found again: a new one adopts.
pub(super) struct Driver {
    pub(super) daemon: Arc<Daemon>,
    pub(super) uid: u32,
    poke: Arc<Notify>,
    pub(super) vmm: Life,
    /// When the VMM was launched or adopted.
    pub(super) since: Instant,
    /// The VMM was there before this driver.
    pub(super) adopted: bool,
    /// The end that comes was asked for.
    pub(super) asked: bool,
    /// Why we ended it ourselves without being asked.
    pub(super) blame: Option<String>,
    pub(super) reboots: Vec<Instant>,
    /// Changes when the machine must learn of other resolvers.
    pub(super) network: watch::Receiver<NetworkConfig>,
    work: HashMap<String, (Work, AbortHandle)>,
    tasks: JoinSet<()>,
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
    /// Returns when the VMM has ended; never while there is none.
    pub(super) async fn ended(&self) {
        match self {
            Life::Booting(process) | Life::Ready(process) => process.ended().await,
            Life::Absent | Life::Dead => std::future::pending().await,
        }
    }
}

impl Driver {
    pub(super) fn new(daemon: Arc<Daemon>, uid: u32, poke: Arc<Notify>) -> Self {
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
            work: HashMap::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Drives until the machine is gone.
    ///
    /// # Errors
    /// The state cannot be read or written.
    pub(super) async fn run(mut self) -> anyhow::Result<()> {
        self.adopt().await?;
        while let Some((machine, environments)) = self.look().await? {
            let action = next_action(&self.observe(&machine, &environments), self.wish(&machine));
            tracing::debug!(machine = machine.developer, ?action);
            match action {
                Action::Rest => self.rest(&machine).await?,
                Action::Launch => self.launch(&machine).await?,
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
        }
        Ok(())
    }

    async fn look(&self) -> rusqlite::Result<Option<(MachineRow, Vec<EnvironmentRow>)>> {
        let uid = self.uid;
        self.daemon
            .read(move |db| {
                let Some(machine) = machines::get(db, uid)? else { return Ok(None) };
                Ok(Some((machine, environments::of_machine(db, uid)?)))
            })
            .await
    }

    fn wish(&self, machine: &MachineRow) -> Wish {
        match Wish::new(machine.desired, machine.removed) {
            Wish::Run if self.daemon.closing.load(Ordering::Relaxed) => Wish::Stand,
            wish => wish,
        }
    }

    fn observe(&self, machine: &MachineRow, environments: &[EnvironmentRow]) -> Observed {
        let vmm = match self.vmm {
            Life::Absent => Vmm::Absent,
            Life::Booting(_) => Vmm::Booting,
            Life::Ready(_) => Vmm::Ready,
            Life::Dead => Vmm::Dead,
        };
        let environments = environments
            .iter()
            .map(|row| plan::Environment {
                id: row.id.clone(),
                wish: Wish::new(row.desired, row.removed),
                generation: row.generation,
                observed_generation: row.observed_generation,
                work: self.work.get(&row.id).map(|(work, _)| *work),
            })
            .collect();
        Observed { vmm, failed: machine.phase == MachinePhase::Failed, environments }
    }

    /// Waits until something changes.
    async fn rest(&mut self, machine: &MachineRow) -> anyhow::Result<()> {
        if matches!(self.vmm, Life::Absent) {
            self.settle_absent().await?;
        }
        let ready = matches!(self.vmm, Life::Ready(_));
        tokio::select! {
            () = self.poke.notified() => {}
            () = self.vmm.ended() => self.vmm = Life::Dead,
            Some(ended) = self.tasks.join_next_with_id() => {
                let task = match ended {
                    Ok((task, ())) => task,
                    Err(error) => error.id(),
                };
                self.work.retain(|_, (_, handle)| handle.id() != task);
            }
            () = tokio::time::sleep(REFRESH), if ready => {
                self.refresh(machine).await?;
                self.tell_resolvers(machine).await;
            }
        }
        Ok(())
    }

    /// Without a machine nothing runs: what should stand does, and what was to be removed waits for the machine.
    async fn settle_absent(&self) -> rusqlite::Result<()> {
        let uid = self.uid;
        self.daemon
            .read(move |db| {
                for row in environments::of_machine(db, uid)? {
                    if row.desired == Desired::Stopped && !row.settled() {
                        let status = EnvironmentStatus { phase: EnvironmentPhase::Stopped, ..row.status };
                        environments::settle(db, &row.id, row.generation, &status)?;
                    }
                }
                Ok(())
            })
            .await
    }

    /// Asks the agent how its containers are; one that ended by itself is seen to have stopped.
    pub(super) async fn refresh(&mut self, machine: &MachineRow) -> rusqlite::Result<()> {
        if self.daemon.memory.standing.state(self.uid) == State::Paused {
            return Ok(());
        }
        let agent = self.daemon.agent(&machine.developer, REFRESH_DEADLINE);
        let statuses: Vec<EnvironmentStatus> = tokio::select! {
            () = self.vmm.ended() => return Ok(()),
            statuses = agent.get("/v1/environments") => match statuses {
                Ok(statuses) => statuses,
                Err(error) => {
                    tracing::warn!(machine = machine.developer, "the agent does not say how its environments are: {error}");
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

    /// Tells the machine of other resolvers; one that is paused or does not listen is told at a later look.
    async fn tell_resolvers(&mut self, machine: &MachineRow) {
        let paused = self.daemon.memory.standing.state(self.uid) == State::Paused;
        if paused || !self.network.has_changed().unwrap_or(false) {
            return;
        }
        let told = self.network.borrow_and_update().clone();
        let setup = self.machine_setup(machine).await;
        let agent = self.daemon.agent(&machine.developer, REFRESH_DEADLINE);
        if let Err(error) = agent.send(hyper::Method::PUT, "/v1/machine", Some(&setup)).await {
            tracing::warn!(machine = machine.developer, resolvers = ?told.resolvers, "the agent is not told: {error}");
            self.network.mark_changed();
        }
    }

    /// Begins to do something to an environment.
    async fn begin(&mut self, machine: &MachineRow, row: EnvironmentRow, work: Work) -> anyhow::Result<()> {
        let id = row.id.clone();
        let run = runs::Run { daemon: self.daemon.clone(), machine: machine.developer.clone(), row };
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
                tracing::error!(environment = id, "cannot keep what became of it: {error}");
            }
        });
        self.work.insert(id, (work, handle));
        Ok(())
    }

    pub(super) fn cancel(&mut self, id: &str) {
        if let Some((_, handle)) = self.work.remove(id) {
            handle.abort();
        }
    }

    pub(super) async fn cancel_all(&mut self) {
        self.work.clear();
        self.tasks.shutdown().await;
    }

    /// Waits for the poke that says something is wanted.
    pub(super) async fn poked(&self) {
        self.poke.notified().await;
    }
}
