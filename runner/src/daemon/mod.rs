//! The host daemon: stores the desired state and reconciles actual state toward it.

mod admission;
mod api;
mod deadlines;
mod dedicated_runtime;
mod disk;
mod keyed_semaphore;
mod line_limit;
mod lost_disks;
mod memory;
mod notify;
mod power_off;
mod prometheus;
mod promises;
mod reconcile;
mod requests;
mod resolvers;
mod serve;
mod state;
mod streams;
mod sweep;
mod tail;
#[cfg(test)]
mod testing;
mod verdict;
mod vmm;
mod vmm_metrics;
mod workspace;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::bail;
use garret_api::client::Client;
use garret_api::stream::StreamKind;
use garret_api::vmm::{Landlock, MachineInfo};
use garret_api::{Code, MachineId, Problem, agent};
use tokio::sync::{mpsc, watch};

pub(crate) use api::audit::TARGET as AUDIT;
pub use memory::{History, MachineView, Order, decide, measure_host};
pub(crate) use serve::serve;

use crate::accounts::{Account, NameService, Unanswered, display_name};
use crate::config::{Config, Limits, RunAs};
use crate::host::share::Identity;
use crate::host::{Artifacts, MachinePaths, NetworkConfig, started};
use admission::Host;
use memory::{Memory, WakeGuard};
use state::{MachineRow, ReadTx, Store, StoreError, WriteTx, machines};
use streams::Streams;
use vmm::uid_of;
use workspace::Workspaces;

/// The largest answer that is read from a VMM or a guest, in bytes.
const ANSWER_MAX: usize = 1 << 20;
/// How long a VMM may take to report its state, or to resume its machine.
const VMM_TIMEOUT: Duration = Duration::from_secs(5);

/// The first uid of machines that have uids of their own; each has this one plus its slot. The range lies above the
/// uids that systemd assigns to containers and SSSD to a directory's accounts (up to 2,000,200,000), and below those
/// that do not fit a signed number.
const FIRST_MACHINE_UID: u32 = 2_100_000_000;

/// State that all parts of the daemon share.
#[derive(Debug)]
struct Daemon {
    config: Config,
    artifacts: Artifacts,
    /// Holds the resolvers, which follow the host's.
    network: watch::Sender<NetworkConfig>,
    /// Measures the host: memory and swap may be added while the daemon runs.
    measure: fn(&Config) -> Host,
    store: Store,
    names: NameService,
    memory: Memory,
    streams: Streams,
    workspaces: Workspaces,
    /// Each running machine's VMM.
    vmms: Mutex<HashMap<MachineId, RunningVmm>>,
    /// Counts writes to the state, so that followers read them.
    changes: watch::Sender<u64>,
    /// Machines whose driver should read the state again.
    pokes: mpsc::UnboundedSender<MachineId>,
    /// The host shuts down: machines stop, and should run again after the next boot.
    closing: AtomicBool,
    /// Machines whose stop could not be written to the state. They stop all the same.
    unwritten_stops: Mutex<BTreeSet<MachineId>>,
    /// Machines that have a VMM, as their drivers report. Usable while the state cannot be read.
    live: watch::Sender<BTreeSet<MachineId>>,
}

/// What the daemon knows of a running VMM.
#[derive(Debug)]
struct RunningVmm {
    /// A connection to the VMM is accepted only from this process.
    pid: u32,
    /// As the VMM reported it; `None`: not asked yet, or the VMM is of an earlier version.
    landlock: Option<Landlock>,
    /// The kinds of streams that the agent's hello names; `None`: the agent has not answered this daemon yet.
    serves: Option<Vec<StreamKind>>,
}

impl Daemon {
    fn new(
        config: Config,
        network: NetworkConfig,
        measure: fn(&Config) -> Host,
        store: Store,
        names: NameService,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<MachineId>) {
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
            names,
            memory: Memory::default(),
            streams: Streams::default(),
            workspaces: Workspaces::default(),
            vmms: Mutex::default(),
            changes,
            pokes,
            closing: AtomicBool::new(false),
            unwritten_stops: Mutex::default(),
            live: watch::Sender::default(),
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

    /// Returns a function that reads the memory with which a machine's VMM was started, in MiB; 0 without a VMM. It
    /// blocks to read a small file.
    fn started(&self) -> impl Fn(&MachineRow) -> u32 + Send + 'static {
        let run = self.config.run.clone();
        move |row| match row.vmm {
            Some(_) => started(&MachinePaths::new(&run, row.id)).map_or(0, |started| started.memory_mib),
            None => 0,
        }
    }

    /// Reads the state.
    async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&ReadTx<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.store.read(job).await
    }

    /// Changes the state in one transaction, and wakes its followers.
    async fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&WriteTx<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let written = self.store.write(job).await;
        self.wake_followers();
        written
    }

    /// Stores what was observed; `job` returns whether anything has changed, which wakes the followers.
    async fn observe(
        &self,
        job: impl FnOnce(&WriteTx<'_>) -> rusqlite::Result<bool> + Send + 'static,
    ) -> Result<(), StoreError> {
        if self.store.write(job).await? {
            self.wake_followers();
        }
        Ok(())
    }

    fn wake_followers(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Asks the machine's driver to read the state again.
    fn poke(&self, machine: MachineId) {
        // Without a supervisor (the daemon is ending), there is no driver to ask.
        let _ = self.pokes.send(machine);
    }

    /// Stops all machines without changing the desired state; returns when they have stopped. It does not read or write
    /// the state: a full disk must not keep a machine from being stopped.
    async fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        let mut live = self.live.subscribe();
        loop {
            let machines = live.borrow_and_update().clone();
            if machines.is_empty() {
                return;
            }
            machines.into_iter().for_each(|machine| self.poke(machine));
            // The sender belongs to this daemon, so it is not dropped.
            let _ = live.changed().await;
        }
    }

    /// Stops the machine although the stop could not be written to the state.
    fn stop_unwritten(&self, machine: MachineId) {
        self.unwritten_stops.lock().unwrap_or_else(PoisonError::into_inner).insert(machine);
        self.poke(machine);
    }

    /// The machine's desired state has been written again, or the machine was deleted.
    fn desired_is_written(&self, machine: MachineId) {
        self.unwritten_stops.lock().unwrap_or_else(PoisonError::into_inner).remove(&machine);
    }

    /// Whether the machine must stop, whatever the state says.
    fn must_stop(&self, machine: MachineId) -> bool {
        self.closing.load(Ordering::Relaxed)
            || self.unwritten_stops.lock().unwrap_or_else(PoisonError::into_inner).contains(&machine)
    }

    fn paths(&self, machine: MachineId) -> MachinePaths {
        MachinePaths::new(&self.config.run, machine)
    }

    fn data_folder(&self, machine: MachineId) -> PathBuf {
        self.config.state.join("machines").join(machine.as_str())
    }

    /// Sets the process of the machine's VMM; `None`: there is no VMM.
    fn set_vmm(&self, machine: MachineId, pid: Option<u32>) {
        let mut vmms = self.vmms();
        match pid {
            Some(pid) => vmms.insert(machine, RunningVmm { pid, landlock: None, serves: None }),
            None => vmms.remove(&machine),
        };
    }

    fn vmms(&self) -> MutexGuard<'_, HashMap<MachineId, RunningVmm>> {
        self.vmms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn vmm_pid(&self, machine: MachineId) -> Option<u32> {
        self.vmms().get(&machine).map(|vmm| vmm.pid)
    }

    /// How far Landlock confines the machine's VMM, if known.
    fn landlock(&self, machine: MachineId) -> Option<Landlock> {
        self.vmms().get(&machine)?.landlock
    }

    /// Asks the VMM how far Landlock confines it, and warns if not entirely.
    async fn ask_landlock(&self, machine: MachineId) {
        let Ok(info) = self.vmm(machine, VMM_TIMEOUT).get::<MachineInfo>("/v1/machine").await else { return };
        if matches!(info.landlock, Some(Landlock::Partial | Landlock::Absent)) {
            tracing::warn!(%machine, landlock = ?info.landlock, "Landlock does not confine the VMM entirely");
        }
        if let Some(vmm) = self.vmms().get_mut(&machine) {
            vmm.landlock = info.landlock;
        }
    }

    /// Sets the kinds of streams that the machine's agent serves. Of a guest's list only known kinds are kept.
    fn set_serves(&self, machine: MachineId, kinds: Vec<StreamKind>) {
        let mut known = Vec::new();
        for kind in kinds {
            if kind != StreamKind::Unknown && !known.contains(&kind) {
                known.push(kind);
            }
        }
        if let Some(vmm) = self.vmms().get_mut(&machine) {
            vmm.serves = Some(known);
        }
    }

    /// # Errors
    /// The machine's agent serves no streams of this kind.
    fn check_serves(&self, machine: &MachineRow, kind: StreamKind) -> Result<(), Problem> {
        match self.vmms().get(&machine.id).and_then(|vmm| vmm.serves.as_ref()) {
            Some(kinds) if !kinds.contains(&kind) => {
                let what = format!("the agent of this machine serves no {kind} streams");
                let to_do = "`garret stop` and `garret start` bring it to the installed version";
                Err(Problem::new(Code::Conflict, format!("{what}: {to_do}")))
            }
            _ => Ok(()),
        }
    }

    /// The account of this uid. Lookups of uids without a machine wait in a separate queue, because any process may
    /// cause one.
    ///
    /// # Errors
    /// The name service does not answer, and the files do not have it.
    async fn account(&self, uid: u32) -> Result<Option<Account>, Unanswered> {
        let known = uid == 0 || self.read(move |db| machines::of_owner(db, uid)).await.is_ok_and(|row| row.is_some());
        if known { self.names.by_uid(uid).await } else { self.names.by_unknown_uid(uid).await }
    }

    /// The developer's identity, as the kernel checks it. If the name service does not answer: only the primary group.
    async fn developer(&self, uid: u32, gid: u32) -> Identity {
        let groups = match self.account(uid).await {
            Ok(Some(account)) => self.names.groups(&account).await.unwrap_or_default(),
            _ => Vec::new(),
        };
        Identity { uid, gid, groups }
    }

    async fn limits(&self, uid: u32) -> Result<Limits, Problem> {
        let unanswered = |error: Unanswered| Problem::new(Code::Unavailable, error.to_string());
        let account = self.account(uid).await.map_err(unanswered)?;
        // Otherwise each subordinate uid of an account (subuid(5)) would count as a developer.
        if account.is_none() && uid != 0 {
            return Err(Problem::new(
                Code::Forbidden,
                format!("uid {uid} has no account on this host, so it has no machine"),
            ));
        }
        let mut groups = Vec::new();
        if let Some(account) = &account {
            for group in self.config.limits.groups() {
                if self.names.is_member(account, group).await.map_err(unanswered)? {
                    groups.push(group);
                }
            }
        }
        self.config.limits.limits_for(uid, &display_name(uid, account.as_ref()), &groups)
    }

    /// The identity with which the machine's VMM runs.
    async fn vmm_identity(&self, machine: &MachineRow) -> Identity {
        let developer = self.developer(machine.owner, machine.gid).await;
        match self.config.machine.run_as {
            RunAs::Developer => developer,
            RunAs::OwnUid => Identity { uid: FIRST_MACHINE_UID + u32::from(machine.slot), ..developer },
        }
    }

    /// # Errors
    /// An account has the uid with which the machine is to run, so it could signal the VMM.
    async fn check_uid(&self, machine: &MachineRow, vmm: &Identity) -> anyhow::Result<()> {
        match self.names.by_uid(vmm.uid).await {
            Ok(Some(account)) if vmm.uid != machine.owner => {
                bail!("uid {} is for machines, but the account {} has it", vmm.uid, account.name)
            }
            _ => Ok(()),
        }
    }

    /// The uid that owns a workspace's files in the machine: the uid that its VMM runs with, even if the configuration
    /// has changed since it was started.
    async fn vmm_uid(&self, machine: &MachineRow) -> u32 {
        match self.vmm_pid(machine.id).and_then(uid_of) {
            Some(uid) => uid,
            None => self.vmm_identity(machine).await.uid,
        }
    }

    /// A client of this machine's VMM. It accepts no other process as its peer.
    fn vmm(&self, machine: MachineId, deadline: Duration) -> Client {
        self.bound_to_vmm(machine, Client::unix(self.paths(machine).api_socket())).with_deadline(deadline)
    }

    fn bound_to_vmm(&self, machine: MachineId, client: Client) -> Client {
        /// No process has this id: without a VMM, every peer is rejected.
        const NONE: u32 = 0;
        client.of_process(self.vmm_pid(machine).unwrap_or(NONE)).with_body_max(ANSWER_MAX)
    }

    /// Resumes the machine if it is paused, and keeps it running until the guard is dropped. A request to the guest
    /// needs a guard.
    async fn wake(&self, machine: &MachineRow) -> WakeGuard {
        self.memory.pauses.wake(machine.id, &self.vmm(machine.id, VMM_TIMEOUT)).await
    }

    /// A client of the agent in this machine.
    fn agent(&self, machine: MachineId, deadline: Duration) -> Client {
        let client = Client::vsock(self.paths(machine).vsock_socket(), agent::PORT);
        self.bound_to_vmm(machine, client).with_deadline(deadline)
    }
}
