//! Carries out orders on one machine: each kind in a lane of its own, with a deadline.

use std::sync::Arc;
use std::time::Duration;

use garret_api::agent::MemorySqueeze;
use garret_api::client::Error;
use garret_api::vmm::MemoryTarget;
use hyper::Method;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::lane::Lane;
use super::log_on_change::LogOnChange;
use crate::daemon::Daemon;
use crate::host;

/// How long a VMM or an agent may take to carry out an order.
const CALL: Duration = Duration::from_secs(5);
/// An order to swap out that is older than this is dropped: the figures behind it are out of date.
const STALE: Duration = Duration::from_secs(2);

/// The lanes of one machine.
#[derive(Debug)]
pub struct Hands {
    /// The limit on plugged memory, in MiB.
    pub limit: Lane<u32>,
    /// The size to which the agent should shrink the guest, in bytes.
    pub squeeze: Lane<Option<u64>>,
    /// When the order was made, and how much to swap out, in bytes.
    pub swap: Lane<(Instant, u64)>,
    /// Whether the machine should be paused.
    pub still: Lane<bool>,
}

impl Hands {
    /// Creates lanes that run as tasks in `tasks`.
    pub fn new(daemon: &Arc<Daemon>, uid: u32, machine: &str, tasks: &mut JoinSet<()>) -> Self {
        let trouble = |what: &str| LogOnChange::of(format!("{what} {machine}"));
        let arm = Arc::new(Arm {
            daemon: daemon.clone(),
            uid,
            machine: machine.into(),
            limit: trouble("changing what may be plugged of"),
            squeeze: trouble("squeezing"),
            swap: trouble("swapping out"),
            still: trouble("pausing or resuming"),
        });
        let (for_limit, for_squeeze, for_swap, for_still) = (arm.clone(), arm.clone(), arm.clone(), arm);
        Self {
            limit: Lane::new(tasks, 0, move |requested_mib| for_limit.clone().limit(requested_mib)),
            squeeze: Lane::new(tasks, None, move |target| for_squeeze.clone().squeeze(target)),
            swap: Lane::new(tasks, (Instant::now(), 0), move |(ordered, bytes)| for_swap.clone().swap(ordered, bytes)),
            still: Lane::new(tasks, false, move |still| for_still.clone().stand(still)),
        }
    }
}

/// What the lanes share.
struct Arm {
    daemon: Arc<Daemon>,
    uid: u32,
    machine: String,
    limit: LogOnChange,
    squeeze: LogOnChange,
    swap: LogOnChange,
    still: LogOnChange,
}

/// Each method returns whether the order is done. An order whose result the arbiter sees at its next look is not
/// retried here: the arbiter repeats it.
impl Arm {
    async fn limit(self: Arc<Self>, requested_mib: u32) -> bool {
        let target = MemoryTarget { requested_mib };
        let done = self.daemon.vmm(&self.machine, CALL).send(Method::PUT, "/v1/memory", Some(&target)).await;
        self.limit.note(done.err().map(|error| error.to_string()));
        true
    }

    /// No measurement shows whether an agent received the order, so an agent that did not answer is asked again.
    async fn squeeze(self: Arc<Self>, target: Option<u64>) -> bool {
        self.daemon.memory.pauses.running(self.uid).await;
        let squeeze = MemorySqueeze { target };
        let done = self.daemon.agent(&self.machine, CALL).send(Method::PUT, "/v1/memory", Some(&squeeze)).await;
        let answered = matches!(done, Ok(()) | Err(Error::Problem { .. }));
        self.squeeze.note(done.err().map(|error| error.to_string()));
        answered
    }

    async fn swap(self: Arc<Self>, ordered: Instant, bytes: u64) -> bool {
        if ordered.elapsed() > STALE {
            return true;
        }
        let name = self.machine.clone();
        let done = tokio::task::spawn_blocking(move || host::reclaim(&name, bytes)).await;
        self.swap.note(match done {
            Ok(done) => done.err().map(|error| format!("{error:#}")),
            Err(error) => Some(error.to_string()),
        });
        true
    }

    async fn stand(self: Arc<Self>, still: bool) -> bool {
        let (pauses, vmm) = (&self.daemon.memory.pauses, self.daemon.vmm(&self.machine, CALL));
        let done = match still {
            true => pauses.pause(self.uid, &vmm).await,
            false => pauses.resume(self.uid, &vmm).await,
        };
        self.still.note(done.err().map(|error| error.to_string()));
        true
    }
}
