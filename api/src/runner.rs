//! The host API: what `garret daemon` answers on its Unix socket. The peer's uid decides what is seen and allowed.
//!
//! | call | body → answer |
//! |---|---|
//! | `GET /v1/host` | → [`HostInfo`] |
//! | `GET /v1/top` | → [`Top`]: memory of the host, and of each machine that the caller may see |
//! | `GET /metrics` | → the same, and the counters of the VMMs, as Prometheus text, of all machines; root and the `garret` group only |
//! | `GET /v1/machines` | → list of [`Machine`] |
//! | `GET /v1/machines/{machine}` | → [`Machine`] |
//! | `PUT /v1/machines/{machine}` | [`MachineRequest`] → [`Machine`]; idempotent |
//! | `DELETE /v1/machines/{machine}` | → 204; the machine and its data disk are removed |
//! | `GET /v1/machines/{machine}/events?after=N&follow=true` | → newline-delimited [`Event`]; ends with the machine |
//! | `GET /v1/machines/{machine}/log` | → text: the console's last bytes |
//! | `GET /v1/machines/{machine}/metrics` | → [`Metrics`](crate::vmm::Metrics): what the VMM counts |
//! | `GET /v1/machines/{machine}/exec` | WebSocket, [`stream`](crate::stream): in the guest itself |
//! | `GET /v1/environments` | → list of [`Environment`] |
//! | `PUT /v1/environments/{id}` | [`EnvironmentRequest`] → [`Environment`]; idempotent |
//! | `GET /v1/environments/{id}` | → [`Environment`] |
//! | `DELETE /v1/environments/{id}` | → 204 |
//! | `GET /v1/environments/{id}/events?after=N&follow=true` | → newline-delimited [`Event`]; ends with the environment |
//! | `GET /v1/environments/{id}/local-env` | → list of the names of the caller's variables that are kept |
//! | `DELETE /v1/environments/{id}/local-env` | → 204; removes the variables that are kept |
//! | `GET /v1/environments/{id}/log` | → text: the container's own output |
//! | `GET /v1/environments/{id}/exec` | WebSocket: in the devcontainer |
//! | `GET /v1/operations` | → list of [`Operation`], the newest first |
//! | `GET /v1/operations/{id}?wait=SECONDS` | → [`Operation`]; with `wait`, when it has ended, or after that time |
//! | `GET /v1/streams` | → list of [`Stream`], the oldest first |
//! | `DELETE /v1/streams/{id}` | → 204; the stream has ended, and its client got the reason |
//! | `GET /v1/events?after=N&follow=true` | → newline-delimited [`Event`], all that the caller may see |
//!
//! `{machine}` is a developer's name or uid, which means the developer's own machine, or a machine's [id](MachineId).
//!
//! Answers and events may hold fields and variants of a newer version, which readers tolerate. The two requests are
//! strict: people write them by hand, and a misspelled field must not be ignored.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::agent::{EnvironmentStatus, Progress};
use crate::stream::StreamKind;
use crate::vmm::Landlock;
use crate::{MachineId, Problem};

pub use crate::operation::{Operation, OperationKind, Outcome};

/// The daemon's socket, unless `GARRET_SOCKET` or `--socket` says otherwise.
pub const SOCKET: &str = "/run/garret/garret.sock";

/// `GET /v1/host`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostInfo {
    /// The runner's version.
    pub version: String,
    /// CPUs of the host.
    pub cpus: u32,
    /// Memory of the host, in MiB.
    pub memory_mib: u64,
    /// Memory promised to the machines that should run, in MiB.
    pub promised_mib: u64,
}

/// The requested state of a machine or an environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// It should run.
    Running,
    /// It should be stopped. Its data is kept.
    Stopped,
}

/// `PUT /v1/machines/{machine}`. An absent field leaves its setting unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineRequest {
    /// The requested state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired: Option<Desired>,
    /// Virtual CPUs, 1 to 32. Takes effect at the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u8>,
    /// Maximum memory, in MiB, 256 or more. Takes effect at the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// Guaranteed memory, which no other machine can take, in MiB, 256 to `memory_mib`. Takes effect immediately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guaranteed_mib: Option<u32>,
    /// Share of the memory beyond the guarantees, relative to other machines, 1 to 10,000; the default is 100. Takes
    /// effect immediately. Root and the `garret` group only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Assigns the machine to the account that its uid has now. That account must have this name: another person may
    /// have had the uid before. Root and the `garret` group only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// One developer's machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Machine {
    /// Its id. It never changes, and no other developer's machine gets it later.
    pub id: MachineId,
    /// The developer: the account's name, or the uid as digits if it has no account.
    pub developer: String,
    /// The developer's uid.
    pub uid: u32,
    /// The requested state.
    pub desired: Desired,
    /// The current state.
    pub phase: MachinePhase,
    /// The reason for the current state, in one line: `running`, `killed by signal 9 (SIGKILL)`, `guest kernel panic:
    /// …`.
    pub reason: String,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Maximum memory, in MiB.
    pub memory_mib: u32,
    /// Guaranteed memory, which no other machine can take, in MiB.
    pub guaranteed_mib: u32,
    /// Share of the memory beyond the guarantees, relative to other machines; the default is 100.
    pub weight: u32,
    /// The VMM's process id on the host; absent if no VMM runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm_pid: Option<u32>,
    /// How far Landlock confines the VMM; absent if no VMM runs, or if it does not report this. Any value other than
    /// `enforced` means that the confinement is incomplete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landlock: Option<Landlock>,
    /// When the current phase began, in seconds since 1970.
    pub since: u64,
    /// The number of the machine's newest event. `events?after=` with this number returns only newer ones.
    pub last_event: u64,
    /// The last operation on the machine. In the answer to a request that changed something: the operation that it
    /// began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
}

/// What a machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MachinePhase {
    /// It is stopped. Its disk is kept.
    Stopped,
    /// It is starting.
    Starting,
    /// It runs, and its agent answers.
    Running,
    /// It is stopping.
    Stopping,
    /// It ended without a request, or it could not start.
    Failed,
    /// A value of a newer version.
    #[serde(other)]
    Unknown,
}

/// `PUT /v1/environments/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentRequest {
    /// The workspace: an absolute path to a folder the caller may read and write.
    #[schema(value_type = String)]
    pub workspace: PathBuf,
    /// The requested state.
    pub desired: Desired,
    /// The path of the devcontainer.json to use, relative to the workspace. Absent: the agent looks for it where the
    /// specification says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// The caller's variables for `${localEnv:…}`. Those that the policy allows replace the kept ones. Absent: the kept
    /// variables stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_env: Option<BTreeMap<String, String>>,
    /// Remove the container and build it again. The value is a key of at most 64 bytes. A client whose answer was lost
    /// repeats the request with the same key, and the container is not built twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebuild: Option<String>,
}

/// One devcontainer of one workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Environment {
    /// `<folder name, simplified>-<32 hex digits of uid and path>`.
    pub id: String,
    /// The machine it is in.
    pub machine: MachineId,
    /// The developer whose machine that is.
    pub developer: String,
    /// The developer's uid.
    pub uid: u32,
    /// The workspace's path on the host.
    #[schema(value_type = String)]
    pub workspace: PathBuf,
    /// The requested state.
    pub desired: Desired,
    /// The number of the current run. Each `PUT` that changes something begins a run, and so does each start of the
    /// machine.
    pub generation: u64,
    /// The generation that `status` describes.
    pub observed_generation: u64,
    /// The current state, as the agent last reported it; `stopped` while the machine does not run.
    pub status: EnvironmentStatus,
    /// The number of its newest event. `events?after=` with this number returns only newer ones.
    pub last_event: u64,
    /// The last operation on it. In the answer to a request that changed something: the operation that it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
}

/// An open connection of a client to a guest, through the daemon. Its machine is not paused while it is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stream {
    /// 8 hexadecimal digits.
    pub id: String,
    /// What it carries.
    pub kind: StreamKind,
    /// The machine that it leads to.
    pub machine: MachineId,
    /// The developer whose machine that is.
    pub developer: String,
    /// Their uid.
    pub uid: u32,
    /// The environment; absent if it leads to the guest itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// The uid of the client that opened it.
    pub opened_by: u32,
    /// When, in milliseconds since 1970.
    pub opened_ms: u64,
    /// Bytes from the client to the guest, with the framing.
    pub to_guest_bytes: u64,
    /// Bytes from the guest to the client, with the framing.
    pub from_guest_bytes: u64,
}

/// A change of a machine or an environment, or a problem with one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// The event's number. A newer event has a larger number.
    pub id: u64,
    /// When it happened, in milliseconds since 1970.
    pub at_ms: u64,
    /// The machine that it is about.
    pub machine: MachineId,
    /// The developer whose machine that is.
    pub developer: String,
    /// The environment; absent if the event is about the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// What happened.
    #[serde(deserialize_with = "event_kind")]
    pub what: EventKind,
}

/// A value that this version does not know, at any depth, makes the result [`EventKind::Unknown`].
fn event_kind<'de, D: serde::Deserializer<'de>>(from: D) -> Result<EventKind, D::Error> {
    let value = serde_json::Value::deserialize(from)?;
    Ok(serde_json::from_value(value).unwrap_or(EventKind::Unknown))
}

/// What an event reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum EventKind {
    /// The machine's phase changed.
    Machine {
        /// The new phase.
        phase: MachinePhase,
        /// The reason, in one line.
        reason: String,
    },
    /// A step of starting an environment.
    Environment {
        /// The generation of the run.
        generation: u64,
        /// The step.
        progress: Progress,
    },
    /// A run stopped an environment. Each run has one last event. A run that starts an environment ends with the step
    /// `ready` or `failed`. A run that could not stop one also ends with `failed`. If another request replaced the run,
    /// the problem of `failed` has the code `cancelled`.
    Stopped {
        /// The generation of the run.
        generation: u64,
    },
    /// An environment and its container were removed.
    Removed {
        /// The environment's last generation.
        generation: u64,
    },
    /// Memory was taken from a machine, or returned to it.
    Squeeze {
        /// How it was taken.
        means: Means,
        /// Bytes that the machine may hold from now on. If `means` is `swap`: bytes that were taken.
        bytes: u64,
        /// The reason, in one line with numbers.
        reason: String,
    },
    /// A problem outside the steps of a run. An action that is retried until it succeeds reports only its first
    /// failure; the run's last event reports how the run ended.
    Problem {
        /// What is wrong.
        problem: Problem,
    },
    /// A value of a newer version.
    Unknown,
}

/// How memory is taken from a machine. Each value is more severe than the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Means {
    /// No memory is taken any more.
    Released,
    /// The agent reclaims cold memory, and the guest may plug less.
    Guest,
    /// The host swaps the machine's memory out.
    Swap,
    /// The machine is paused, so that its memory stays swapped out.
    Paused,
}

/// `GET /v1/top`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Top {
    /// The host's memory.
    pub host: HostMemory,
    /// The machines that the caller may see, sorted by developer.
    pub machines: Vec<MachineMemory>,
}

/// The host's memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostMemory {
    /// Total memory.
    pub total: u64,
    /// Memory that programs could get without swapping (`MemAvailable`).
    pub available: u64,
    /// Total swap.
    pub swap_total: u64,
    /// Free swap.
    pub swap_free: u64,
    /// Memory for machines: `total` without the reserve for the host itself.
    pub capacity: u64,
    /// Memory promised to the machines that should run.
    pub promised: u64,
    /// Memory guaranteed to the machines that should run.
    pub guaranteed: u64,
    /// Memory that the running machines hold.
    pub resident: u64,
    /// `promised` divided by `total`.
    pub overcommit: f64,
    /// Memory pressure: percentage of the last 10 s in which some task waited; absent on a host without PSI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure_some: Option<f64>,
    /// Memory pressure: percentage of the last 10 s in which all tasks waited; absent on a host without PSI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure_full: Option<f64>,
}

/// One running machine's memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MachineMemory {
    /// The developer whose machine it is.
    pub developer: String,
    /// Maximum memory.
    pub promised: u64,
    /// Guaranteed memory, which no other machine can take.
    pub guaranteed: u64,
    /// Share of the memory beyond the guarantees, relative to other machines.
    pub weight: u32,
    /// Memory that the guest may use now: boot memory and the memory that it may plug.
    pub limit: u64,
    /// Host memory that the machine should hold, as the arbiter decided.
    pub target: u64,
    /// Host memory that the machine holds.
    pub resident: u64,
    /// Memory of the machine that the host has swapped out.
    pub swapped: u64,
    /// Host memory that the machine holds and uses: `resident` without what is free or cold in the guest.
    pub working_set: u64,
    /// Memory pressure in the guest: percentage of the last 10 s in which some task waited; absent if the guest does
    /// not report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure_some: Option<f64>,
    /// How memory is being taken from the machine; absent if none is taken.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "means")]
    pub squeezed: Option<Means>,
    /// Processes that the guest's kernel killed for lack of memory, without those killed by a container's own limit.
    pub oom_kills: u64,
}

/// A value that this version does not know becomes `None`.
fn means<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Means>, D::Error> {
    let value = serde_json::Value::deserialize(from)?;
    Ok(serde_json::from_value(value).unwrap_or(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_a_newer_version_is_read() {
        let event = |what: &str| -> EventKind {
            let text =
                format!(r#"{{"id": 1, "at_ms": 2, "machine": "m1", "developer": "ann", "new": 1, "what": {what}}}"#);
            serde_json::from_str::<Event>(&text).unwrap().what
        };
        for what in [
            r#"{"type": "port", "number": 80}"#,
            r#"{"type": "squeeze", "means": "compressed", "bytes": 1, "reason": "r"}"#,
            r#"{"type": "unknown"}"#,
        ] {
            assert_eq!(event(what), EventKind::Unknown, "{what}");
        }
        let phase = event(r#"{"type": "machine", "phase": "suspended", "reason": "r", "new": 1}"#);
        assert_eq!(phase, EventKind::Machine { phase: MachinePhase::Unknown, reason: "r".into() });
        let step = event(r#"{"type": "environment", "generation": 1, "progress": {"kind": "paused", "for": "x"}}"#);
        assert_eq!(step, EventKind::Environment { generation: 1, progress: Progress::Unknown });
    }

    #[test]
    fn means_of_a_newer_version_are_none() {
        let memory = serde_json::to_value(MachineMemory { squeezed: Some(Means::Swap), ..Default::default() });
        let mut memory = memory.unwrap();
        assert_eq!(serde_json::from_value::<MachineMemory>(memory.clone()).unwrap().squeezed, Some(Means::Swap));
        memory["squeezed"] = "compressed".into();
        assert_eq!(serde_json::from_value::<MachineMemory>(memory).unwrap().squeezed, None);
    }
}
