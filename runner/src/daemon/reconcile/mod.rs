//! Reconciles actual state toward desired state: one driver task per machine, and a supervisor of the drivers.

mod at_rest;
mod backoff;
mod boot;
mod boot_retry;
mod disk_failures;
mod driver;
mod ending;
mod environment_run;
mod liveness;
mod plan;
mod sharing;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use garret_api::MachineId;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;
use tracing::Instrument;

use super::Daemon;
use super::dedicated_runtime::run_on_dedicated_runtime;
use super::state::machines;
use driver::Driver;

/// The pause before a driver that panicked is replaced.
const RETRY: Duration = Duration::from_secs(1);
/// Machines that start at once: one for each CPU, and on the smallest host two.
const STARTS_MIN: u32 = 2;

/// Runs a driver for every present and future machine until the daemon ends, on a dedicated runtime.
pub(super) async fn supervise(daemon: Arc<Daemon>, poked: mpsc::UnboundedReceiver<MachineId>) -> anyhow::Result<()> {
    run_on_dedicated_runtime("drivers", drive_all(daemon, poked)).await?
}

async fn drive_all(daemon: Arc<Daemon>, mut poked: mpsc::UnboundedReceiver<MachineId>) -> anyhow::Result<()> {
    let starts = daemon.host().cpus.max(STARTS_MIN) as usize;
    let starts = Arc::new(Semaphore::new(starts));
    let mut drivers = Drivers { daemon: daemon.clone(), starts, running: HashMap::new(), tasks: JoinSet::new() };
    let machines = daemon.read(machines::all).await?;
    // Until their drivers have looked, machines with a recorded VMM count as running.
    daemon.live.send_modify(|live| live.extend(machines.iter().filter(|row| row.vmm.is_some()).map(|row| row.id)));
    for machine in &machines {
        drivers.poke(machine.id);
    }
    loop {
        tokio::select! {
            machine = poked.recv() => match machine {
                Some(machine) => drivers.poke(machine),
                None => return Ok(()),
            },
            Some(ended) = drivers.tasks.join_next_with_id() => {
                match ended {
                    Ok((task, ())) => drivers.ended(task, Duration::ZERO).await?,
                    Err(error) => {
                        tracing::error!("a machine's driver failed and is restarted: {error}");
                        drivers.ended(error.id(), RETRY).await?;
                    }
                }
            }
        }
    }
}

struct Drivers {
    daemon: Arc<Daemon>,
    starts: Arc<Semaphore>,
    running: HashMap<MachineId, (tokio::task::Id, Arc<Notify>)>,
    tasks: JoinSet<()>,
}

impl Drivers {
    fn poke(&mut self, machine: MachineId) {
        match self.running.get(&machine) {
            Some((_, poke)) => poke.notify_one(),
            None => self.drive(machine, Duration::ZERO),
        }
    }

    fn drive(&mut self, machine: MachineId, after: Duration) {
        let poke = Arc::new(Notify::new());
        let driver = Driver::new(self.daemon.clone(), machine, poke.clone(), self.starts.clone());
        let drive = async move {
            tokio::time::sleep(after).await;
            driver.run().await;
        };
        // Of the level that is always logged.
        let task = self.tasks.spawn(drive.instrument(tracing::error_span!("machine", id = %machine)));
        self.running.insert(machine, (task.id(), poke));
    }

    /// A driver ends when its machine is gone. One that died is replaced.
    async fn ended(&mut self, task: tokio::task::Id, pause: Duration) -> anyhow::Result<()> {
        let Some(machine) = self.running.iter().find(|(_, (id, _))| *id == task).map(|(machine, _)| *machine) else {
            return Ok(());
        };
        self.running.remove(&machine);
        if self.daemon.read(move |db| machines::get(db, machine)).await?.is_some() {
            self.drive(machine, pause);
        }
        Ok(())
    }
}
