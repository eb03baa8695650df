//! Carries out orders on one machine: each kind by an actuator of its own, with a deadline.

use std::sync::Arc;
use std::time::Duration;

use garret_api::MachineId;
use garret_api::agent::MemorySqueeze;
use garret_api::client::Error;
use garret_api::vmm::MemoryTarget;
use hyper::Method;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::latest_only::LatestOnly;
use crate::daemon::Daemon;
use crate::daemon::memory::report::LogOnChange;
use crate::host;

/// How long a VMM or an agent may take to carry out an order.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// An order to swap out that is older than this is dropped: the figures behind it are out of date.
const STALE_AFTER: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Actuators {
    /// The limit on plugged memory, in MiB.
    pub limit: LatestOnly<u32>,
    /// The size to which the agent should shrink the guest, in bytes.
    pub squeeze: LatestOnly<Option<u64>>,
    /// When the order was made, and how much to swap out, in bytes.
    pub swap: LatestOnly<(Instant, u64)>,
    /// Whether the machine should be paused.
    pub pause: LatestOnly<bool>,
}

impl Actuators {
    /// Starts the actuators as tasks in `tasks`.
    pub(crate) fn new(daemon: &Arc<Daemon>, machine: MachineId, tasks: &mut JoinSet<()>) -> Self {
        let log = |what: &str| LogOnChange::of(format!("{what} {machine}"));
        let executor = Arc::new(Executor {
            daemon: daemon.clone(),
            machine,
            limit: log("changing what may be plugged of"),
            squeeze: log("squeezing"),
            swap: log("swapping out"),
            pause: log("pausing or resuming"),
        });
        let (for_limit, for_squeeze, for_swap, for_pause) =
            (executor.clone(), executor.clone(), executor.clone(), executor);
        Self {
            limit: LatestOnly::new(tasks, 0, move |requested_mib| for_limit.clone().limit(requested_mib)),
            squeeze: LatestOnly::new(tasks, None, move |target| for_squeeze.clone().squeeze(target)),
            swap: LatestOnly::new(tasks, (Instant::now(), 0), move |(ordered, bytes)| {
                for_swap.clone().swap(ordered, bytes)
            }),
            pause: LatestOnly::new(tasks, false, move |paused| for_pause.clone().set_paused(paused)),
        }
    }
}

/// Carries out the orders of all actuators.
struct Executor {
    daemon: Arc<Daemon>,
    machine: MachineId,
    limit: LogOnChange,
    squeeze: LogOnChange,
    swap: LogOnChange,
    pause: LogOnChange,
}

/// Each method returns whether the order is done. An order whose result the arbiter sees in its next cycle is not
/// retried here: the arbiter repeats it.
impl Executor {
    async fn limit(self: Arc<Self>, requested_mib: u32) -> bool {
        let target = MemoryTarget { requested_mib };
        let done = self.daemon.vmm(self.machine, CALL_TIMEOUT).send(Method::PUT, "/v1/memory", Some(&target)).await;
        self.limit.note(done.err().map(|error| error.to_string()));
        true
    }

    /// No measurement shows whether an agent received the order, so an agent that did not answer is asked again.
    async fn squeeze(self: Arc<Self>, target: Option<u64>) -> bool {
        self.daemon.memory.pauses.wait_until_running(self.machine).await;
        let squeeze = MemorySqueeze { target };
        let done = self.daemon.agent(self.machine, CALL_TIMEOUT).send(Method::PUT, "/v1/memory", Some(&squeeze)).await;
        let answered = matches!(done, Ok(()) | Err(Error::Problem { .. }));
        self.squeeze.note(done.err().map(|error| error.to_string()));
        answered
    }

    async fn swap(self: Arc<Self>, ordered: Instant, bytes: u64) -> bool {
        if ordered.elapsed() > STALE_AFTER {
            return true;
        }
        let machine = self.machine;
        let done = tokio::task::spawn_blocking(move || host::reclaim(machine, bytes)).await;
        self.swap.note(match done {
            Ok(done) => done.err().map(|error| format!("{error:#}")),
            Err(error) => Some(error.to_string()),
        });
        true
    }

    async fn set_paused(self: Arc<Self>, paused: bool) -> bool {
        let (pauses, vmm) = (&self.daemon.memory.pauses, self.daemon.vmm(self.machine, CALL_TIMEOUT));
        let done = match paused {
            true => pauses.pause(self.machine, &vmm).await,
            false => pauses.resume(self.machine, &vmm).await,
        };
        self.pause.note(done.err().map(|error| error.to_string()));
        true
    }
}
