//! The one place that pauses and resumes machines.
//!
//! A task that needs a machine holds a [`WakeGuard`] while it does. A machine that is needed is not paused. Pausing and
//! resuming one machine exclude each other: if a need begins during a pause, the machine is resumed after it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use garret_api::MachineId;
use garret_api::client::{Client, Error};
use garret_api::vmm::{MachineInfo, MachineState};
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::time::Instant;

/// How long a machine counts as needed after the need has ended.
const LINGER: Duration = Duration::from_secs(10);

/// Whether a machine is paused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum PauseState {
    /// The runner has not asked the VMM yet, or the VMM did not answer a request to pause.
    #[default]
    Unknown,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs are paused.
    Paused,
}

/// All machines.
#[derive(Debug)]
pub(crate) struct PauseControl {
    machines: Mutex<HashMap<MachineId, Arc<Machine>>>,
    /// How long a machine counts as needed after the need has ended.
    linger: Duration,
}

impl Default for PauseControl {
    fn default() -> Self {
        Self { machines: Mutex::default(), linger: LINGER }
    }
}

#[derive(Debug, Default)]
struct Machine {
    needs: Mutex<Needs>,
    state: watch::Sender<PauseState>,
    transition: AsyncMutex<()>,
}

#[derive(Debug, Default)]
struct Needs {
    guards: usize,
    last_dropped: Option<Instant>,
}

/// Marks the machine as needed until the guard is dropped.
#[derive(Debug)]
pub(crate) struct WakeGuard(Arc<Machine>);

impl WakeGuard {
    fn new(machine: Arc<Machine>) -> Self {
        machine.needs().guards += 1;
        Self(machine)
    }
}

impl Drop for WakeGuard {
    fn drop(&mut self) {
        let mut needs = self.0.needs();
        needs.guards -= 1;
        needs.last_dropped = Some(Instant::now());
    }
}

impl PauseControl {
    /// Resumes the machine if it is paused, and keeps it running until the returned value is dropped.
    ///
    /// If the VMM does not answer, that is logged. The caller's request to the guest then fails with its own reason.
    pub(crate) async fn wake(&self, id: MachineId, vmm: &Client) -> WakeGuard {
        let needed = WakeGuard::new(self.machine(id));
        if let Err(error) = needed.0.resume(vmm).await {
            tracing::warn!(machine = %id, "cannot resume a machine that is needed: {error}");
        }
        needed
    }

    /// Pauses the machine, unless it is needed.
    ///
    /// # Errors
    /// The VMM refuses or does not answer. A VMM that does not answer may still have paused: ask it.
    pub(crate) async fn pause(&self, id: MachineId, vmm: &Client) -> Result<(), Error> {
        self.machine(id).pause(vmm, self.linger).await
    }

    /// Resumes the machine.
    ///
    /// # Errors
    /// The VMM refuses or does not answer.
    pub(crate) async fn resume(&self, id: MachineId, vmm: &Client) -> Result<(), Error> {
        self.machine(id).resume(vmm).await
    }

    /// A new VMM starts running, not paused.
    pub(crate) fn started(&self, id: MachineId) {
        self.machine(id).state.send_replace(PauseState::Running);
    }

    /// Asks the VMM of a machine that is not known to run. An earlier runner may have paused it, and the VMM resumes it
    /// by itself when this runner was silent for longer than the machine's lease.
    pub(crate) async fn check(&self, id: MachineId, vmm: &Client) {
        self.machine(id).check(vmm).await;
    }

    pub(crate) fn state(&self, id: MachineId) -> PauseState {
        *self.machine(id).state.borrow()
    }

    /// Whether the machine is needed, or was a moment ago: commands often follow each other.
    pub(crate) fn is_needed(&self, id: MachineId) -> bool {
        self.machine(id).is_needed(self.linger)
    }

    /// Returns when the machine is known to run.
    pub(crate) async fn wait_until_running(&self, id: MachineId) {
        let machine = self.machine(id);
        let mut state = machine.state.subscribe();
        // The sender is in `machine`.
        let _ = state.wait_for(|state| *state == PauseState::Running).await;
    }

    /// Forgets machines that do not exist, unless a task still uses them: new machines have new ids.
    pub(crate) fn retain(&self, exists: impl Fn(MachineId) -> bool) {
        let mut machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        machines.retain(|id, machine| exists(*id) || Arc::strong_count(machine) > 1);
    }

    fn machine(&self, id: MachineId) -> Arc<Machine> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default().clone()
    }
}

impl Machine {
    fn needs(&self) -> MutexGuard<'_, Needs> {
        self.needs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_needed(&self, linger: Duration) -> bool {
        let needs = self.needs();
        needs.guards > 0 || needs.last_dropped.is_some_and(|at| at.elapsed() < linger)
    }

    async fn pause(&self, vmm: &Client, linger: Duration) -> Result<(), Error> {
        let _transition = self.transition.lock().await;
        if self.is_needed(linger) || *self.state.borrow() == PauseState::Paused {
            return Ok(());
        }
        // Set before the request: a VMM may act on a request after the caller has given up waiting.
        let before = self.state.send_replace(PauseState::Paused);
        let paused = vmm.post("/v1/pause").await;
        match &paused {
            Ok(()) => {}
            Err(Error::Problem { .. } | Error::Connect { .. }) => drop(self.state.send_replace(before)),
            Err(_) => drop(self.state.send_replace(PauseState::Unknown)),
        }
        paused
    }

    async fn check(&self, vmm: &Client) {
        // While the state is being changed, the answer would be out of date.
        let Ok(_transition) = self.transition.try_lock() else { return };
        let before = *self.state.borrow();
        if before == PauseState::Running {
            return;
        }
        let Ok(info) = vmm.get::<MachineInfo>("/v1/machine").await else { return };
        let now = if info.state == MachineState::Paused { PauseState::Paused } else { PauseState::Running };
        self.state.send_if_modified(|state| {
            // A new VMM may have started during the request.
            let changes = *state == before && before != now;
            if changes {
                *state = now;
            }
            changes
        });
    }

    async fn resume(&self, vmm: &Client) -> Result<(), Error> {
        let _transition = self.transition.lock().await;
        if *self.state.borrow() == PauseState::Running {
            return Ok(());
        }
        vmm.post("/v1/resume").await?;
        self.state.send_replace(PauseState::Running);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
