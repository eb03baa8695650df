//! The host daemon: keeps what should be, and makes it so.

mod admission;
mod api;
mod disk;
mod memory;
mod notify;
mod promises;
mod reconcile;
mod requests;
mod resolvers;
mod serve;
mod state;
mod tail;
mod verdict;
mod vmm;
mod workspace;

use std::collections::HashMap;
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

use crate::accounts::Accounts;
use crate::config::{Config, RunAs};
use crate::host::share::Identity;
use crate::host::{Artifacts, MachinePaths, NetworkConfig, started};
use admission::Host;
use memory::{Memory, Needed};
use state::{MachineRow, Store, machines};
use workspace::Workspaces;

/// How long a VMM may take to let its machine go on.
const WAKE: Duration = Duration::from_secs(5);

/// What all parts of the daemon share.
#[derive(Debug)]
struct Daemon {
    config: Config,
    artifacts: Artifacts,
    /// The resolvers in it follow the host's.
    network: watch::Sender<NetworkConfig>,
    /// Reads the host's figures: memory and swap may be added while the daemon runs.
    measure: fn(&Config) -> Host,
    store: Store,
    memory: Memory,
    workspaces: Workspaces,
    /// The process id of each running machine's VMM, by the machine's name: nothing else is taken for it.
    vmms: Mutex<HashMap<String, u32>>,
    /// Counts what was written: whoever follows something looks again.
    changes: watch::Sender<u64>,
    /// Machines whose driver should look again.
    pokes: mpsc::UnboundedSender<u32>,
    /// The host shuts down: machines stand still, and should run again after its next boot.
    closing: AtomicBool,
}

impl Daemon {
    fn new(
        config: Config,
        network: NetworkConfig,
        measure: fn(&Config) -> Host,
        store: Store,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<u32>) {
        let (pokes, poked) = mpsc::unbounded_channel();
        let (changes, _) = watch::channel(0);
        let (network, _) = watch::channel(network);
        let artifacts = config.artifacts();
        let daemon = Self {
            config,
            artifacts,
            network,
            measure,
            store,
            memory: Memory::default(),
            workspaces: Workspaces::default(),
            vmms: Mutex::default(),
            changes,
            pokes,
            closing: AtomicBool::new(false),
        };
        (Arc::new(daemon), poked)
    }

    /// The host's figures, measured now.
    fn host(&self) -> Host {
        (self.measure)(&self.config)
    }

    fn network(&self) -> NetworkConfig {
        self.network.borrow().clone()
    }

    /// Finds what a machine's VMM was started with, in MiB; 0 where there is no VMM. Blocks for a small file.
    fn started(&self) -> impl Fn(&MachineRow) -> u32 + Send + 'static {
        let run = self.config.run.clone();
        move |row| match row.vmm {
            Some(_) => started(&MachinePaths::new(&run, &row.developer)).map_or(0, |started| started.memory_mib),
            None => 0,
        }
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

    /// Brings all machines to rest without a change of what is desired; returns when they are.
    async fn close(&self) -> rusqlite::Result<()> {
        let mut changes = self.changes.subscribe();
        self.closing.store(true, Ordering::Relaxed);
        loop {
            let machines = self.read(machines::all).await?;
            if machines.iter().all(|machine| machine.vmm.is_none()) {
                return Ok(());
            }
            machines.iter().for_each(|machine| self.poke(machine.uid));
            // The sender is our own.
            let _ = changes.changed().await;
        }
    }

    fn paths(&self, machine: &str) -> MachinePaths {
        MachinePaths::new(&self.config.run, machine)
    }

    fn data_folder(&self, machine: &str) -> PathBuf {
        self.config.state.join("machines").join(machine)
    }

    /// Which process the machine's VMM is from now on; `None`: there is none.
    fn set_vmm(&self, machine: &str, pid: Option<u32>) {
        let mut vmms = self.vmms.lock().unwrap_or_else(PoisonError::into_inner);
        match pid {
            Some(pid) => vmms.insert(machine.to_owned(), pid),
            None => vmms.remove(machine),
        };
    }

    /// The developer, as the kernel checks them.
    fn developer(uid: u32, gid: u32) -> Identity {
        Identity { uid, gid, groups: Accounts::read().groups_of(uid) }
    }

    /// Who the machine's VMM runs as.
    fn vmm_identity(&self, machine: &MachineRow) -> Identity {
        let developer = Self::developer(machine.uid, machine.gid);
        match self.config.machine.run_as {
            RunAs::Developer => developer,
            RunAs::OwnUid => Identity { uid: self.config.machine.first_uid + u32::from(machine.slot), ..developer },
        }
    }

    /// A client of this machine's VMM, which trusts no other process.
    fn vmm(&self, machine: &str, deadline: Duration) -> Client {
        self.proven(machine, Client::unix(self.paths(machine).api_socket())).with_deadline(deadline)
    }

    fn proven(&self, machine: &str, client: Client) -> Client {
        /// No process has it: without a VMM every peer is the wrong one.
        const NONE: u32 = 0;
        let vmms = self.vmms.lock().unwrap_or_else(PoisonError::into_inner);
        client.of_process(vmms.get(machine).copied().unwrap_or(NONE))
    }

    /// Lets the machine go on if it stands still, and keeps it going for as long as what is returned lives. Whoever
    /// wants something of the guest needs one.
    async fn wake(&self, machine: &MachineRow) -> Needed {
        self.memory.standing.wake(machine.uid, &self.vmm(&machine.developer, WAKE)).await
    }

    /// A client of the agent in this machine.
    fn agent(&self, machine: &str, deadline: Duration) -> Client {
        let client = Client::vsock(self.paths(machine).vsock_socket(), agent::PORT);
        self.proven(machine, client).with_deadline(deadline)
    }
}
