//! Makes what is into what should be: one driver task per machine, and a supervisor of the drivers.

mod boot;
mod driver;
mod ending;
mod plan;
mod runs;
mod sharing;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use super::Daemon;
use super::state::machines;
use driver::Driver;

/// How long a driver that could not go on rests before it begins again.
const RETRY: Duration = Duration::from_secs(1);

/// Runs a driver for every machine there is and for every one that comes, until the daemon ends.
pub async fn supervise(daemon: Arc<Daemon>, mut poked: mpsc::UnboundedReceiver<u32>) -> anyhow::Result<()> {
    let mut drivers = Drivers { daemon: daemon.clone(), running: HashMap::new(), tasks: JoinSet::new() };
    for machine in daemon.read(machines::all).await? {
        drivers.poke(machine.uid);
    }
    loop {
        tokio::select! {
            uid = poked.recv() => match uid {
                Some(uid) => drivers.poke(uid),
                None => return Ok(()),
            },
            Some(ended) = drivers.tasks.join_next_with_id() => {
                let task = match ended {
                    Ok((task, ())) => task,
                    Err(error) => {
                        tracing::error!("a driver died: {error}");
                        error.id()
                    }
                };
                drivers.ended(task).await?;
            }
        }
    }
}

struct Drivers {
    daemon: Arc<Daemon>,
    running: HashMap<u32, (tokio::task::Id, Arc<Notify>)>,
    tasks: JoinSet<()>,
}

impl Drivers {
    fn poke(&mut self, uid: u32) {
        if let Some((_, poke)) = self.running.get(&uid) {
            return poke.notify_one();
        }
        let poke = Arc::new(Notify::new());
        let driver = Driver::new(self.daemon.clone(), uid, poke.clone());
        let task = self.tasks.spawn(async move {
            if let Err(error) = driver.run().await {
                tracing::error!(uid, "cannot go on with a machine: {error:#}");
                tokio::time::sleep(RETRY).await;
            }
        });
        self.running.insert(uid, (task.id(), poke));
    }

    /// A driver ends when its machine is gone. One may have come into being meanwhile, and a failed driver begins again.
    async fn ended(&mut self, task: tokio::task::Id) -> anyhow::Result<()> {
        let Some(uid) = self.running.iter().find(|(_, (id, _))| *id == task).map(|(uid, _)| *uid) else {
            return Ok(());
        };
        self.running.remove(&uid);
        if self.daemon.read(move |db| machines::get(db, uid)).await?.is_some() {
            self.poke(uid);
        }
        Ok(())
    }
}
