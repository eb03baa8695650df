//! The host daemon: keeps what should be, and makes it so.

mod admission;
mod api;
mod disk;
mod memory;
mod notify;
mod promises;
mod reconcile;
mod requests;
mod serve;
mod state;
mod tail;
mod verdict;
mod vmm;
mod workspace;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use garret_api::agent;
use garret_api::client::Client;
use rusqlite::Connection;
use tokio::sync::{mpsc, watch};

pub use admission::MEMORY_MIN_MIB;
pub use api::openapi;
pub use memory::{Arbiter, MachineView, Order, measure_host};
pub use serve::serve;

use crate::accounts::NameService;
use crate::config::Config;
use crate::host::{Artifacts, MachinePaths, NetworkConfig};
use admission::Host;
use memory::{Memory, Needed};
use state::{MachineRow, Store};

/// How long a VMM may take to let its machine go on.
const WAKE: Duration = Duration::from_secs(5);

/// What all parts of the daemon share.
#[derive(Debug)]
struct Daemon {
    config: Config,
    artifacts: Artifacts,
    network: NetworkConfig,
    host: Host,
    store: Store,
    names: NameService,
    memory: Memory,
    /// Counts what was written: whoever follows something looks again.
    changes: watch::Sender<u64>,
    /// Machines whose driver should look again.
    pokes: mpsc::UnboundedSender<u32>,
    /// The host shuts down: machines stand still, and should run again after its next boot.
    closing: AtomicBool,
    /// Machines whose stop could not be written. They stop all the same.
    unwritten_stops: Mutex<BTreeSet<u32>>,
    /// Machines that have a VMM, as their drivers know: it needs no state that can be read.
    live: watch::Sender<BTreeSet<u32>>,
}

impl Daemon {
    fn new(
        config: Config,
        network: NetworkConfig,
        host: Host,
        store: Store,
        names: NameService,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<u32>) {
        let (pokes, poked) = mpsc::unbounded_channel();
        let (changes, _) = watch::channel(0);
        let artifacts = config.artifacts();
        let daemon = Self {
            config,
            artifacts,
            network,
            host,
            store,
            names,
            memory: Memory::default(),
            changes,
            pokes,
            closing: AtomicBool::new(false),
            unwritten_stops: Mutex::default(),
            live: watch::Sender::default(),
        };
        (Arc::new(daemon), poked)
    }

    /// Reads the state.
    async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> rusqlite::Result<T> {
        self.store.run(job).await
    }

    /// Changes the state in one transaction, and wakes who follows.
    async fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> rusqlite::Result<T> {
        let written = self.store.run(job).await;
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
        written
    }

    /// The machine's driver should look again.
    fn poke(&self, uid: u32) {
        // Without a supervisor (the daemon is ending) there is nobody to look.
        let _ = self.pokes.send(uid);
    }

    /// Brings all machines to rest without a change of what is desired; returns when they are. It reads and writes no
    /// state: a full disk must not keep a machine from being stopped.
    async fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        let mut live = self.live.subscribe();
        loop {
            let uids = live.borrow_and_update().clone();
            if uids.is_empty() {
                return;
            }
            uids.into_iter().for_each(|uid| self.poke(uid));
            // The sender is our own.
            let _ = live.changed().await;
        }
    }

    /// Stops the machine although that could not be written.
    fn stop_unwritten(&self, uid: u32) {
        self.unwritten_stops.lock().unwrap_or_else(PoisonError::into_inner).insert(uid);
        self.poke(uid);
    }

    /// What is desired of the machine has been written again.
    fn desired_is_written(&self, uid: u32) {
        self.unwritten_stops.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid);
    }

    /// Whether the machine must stand still whatever the state says.
    fn must_stand(&self, uid: u32) -> bool {
        self.closing.load(Ordering::Relaxed)
            || self.unwritten_stops.lock().unwrap_or_else(PoisonError::into_inner).contains(&uid)
    }

    fn paths(&self, machine: &str) -> MachinePaths {
        MachinePaths::new(&self.config.run, machine)
    }

    fn data_folder(&self, machine: &str) -> PathBuf {
        self.config.state.join("machines").join(machine)
    }

    /// A client of this machine's VMM.
    fn vmm(&self, machine: &str, deadline: Duration) -> Client {
        Client::unix(self.paths(machine).api_socket()).with_deadline(deadline)
    }

    /// Lets the machine go on if it stands still, and keeps it going for as long as what is returned lives. Whoever
    /// wants something of the guest needs one.
    async fn wake(&self, machine: &MachineRow) -> Needed {
        self.memory.standing.wake(machine.uid, &self.vmm(&machine.name, WAKE)).await
    }

    /// A client of the agent in this machine.
    fn agent(&self, machine: &str, deadline: Duration) -> Client {
        Client::vsock(self.paths(machine).vsock_socket(), agent::PORT).with_deadline(deadline)
    }
}
