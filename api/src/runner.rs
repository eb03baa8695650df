//! The host API: what `garret daemon` answers on its Unix socket. The peer's uid decides what is seen and allowed.
//!
//! | call | body → answer |
//! |---|---|
//! | `GET /v1/host` | → [`HostInfo`] |
//! | `GET /v1/top` | → [`Top`]: how the host's memory and each machine's stands, of the machines the caller may see |
//! | `GET /metrics` | → the same as Prometheus text, of all machines; root and the `garret` group only |
//! | `GET /v1/machines` | → list of [`Machine`] |
//! | `GET /v1/machines/{machine}` | → [`Machine`] |
//! | `PUT /v1/machines/{machine}` | [`MachineRequest`] → [`Machine`]; idempotent |
//! | `DELETE /v1/machines/{machine}` | → 204; the machine and its data disk are removed |
//! | `GET /v1/machines/{machine}/events?after=N&follow=true` | → newline-delimited [`Event`]; ends with the machine |
//! | `GET /v1/machines/{machine}/log` | → text: the console's last bytes |
//! | `GET /v1/machines/{machine}/exec` | WebSocket, [`stream`](crate::stream): in the guest itself |
//! | `GET /v1/environments` | → list of [`Environment`] |
//! | `PUT /v1/environments/{id}` | [`EnvironmentRequest`] → [`Environment`]; idempotent |
//! | `GET /v1/environments/{id}` | → [`Environment`] |
//! | `DELETE /v1/environments/{id}` | → 204 |
//! | `GET /v1/environments/{id}/events?after=N&follow=true` | → newline-delimited [`Event`]; ends with the environment |
//! | `GET /v1/environments/{id}/local-env` | → list of the names of the caller's variables that are kept |
//! | `DELETE /v1/environments/{id}/local-env` | → 204; none is kept |
//! | `GET /v1/environments/{id}/log` | → text: the container's own output |
//! | `GET /v1/environments/{id}/exec` | WebSocket: in the devcontainer |
//! | `GET /v1/operations` | → list of [`Operation`], the newest first |
//! | `GET /v1/operations/{id}?wait=SECONDS` | → [`Operation`]; with `wait`, when it has ended, or after that time |
//! | `GET /v1/events?after=N&follow=true` | → newline-delimited [`Event`] of everything the caller may see |
//!
//! `{machine}` is a developer's name or uid, which means the developer's own machine, or a machine's [id](MachineId).
//!
//! Answers and events may hold fields and variants of a newer version, which readers tolerate. The two requests are strict:
//! people write them by hand, and a misspelled field must not be ignored.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::agent::{EnvironmentStatus, Progress};
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

/// What should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// It should run.
    Running,
    /// It should stand still and keep its data.
    Stopped,
}

/// `PUT /v1/machines/{machine}`: absent fields stay as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineRequest {
    /// Whether it should run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired: Option<Desired>,
    /// Virtual CPUs, 1 to 32; used from the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u8>,
    /// The most memory it can have, in MiB, 256 or more; used from the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// Memory that is its own whatever the others do, in MiB, 256 to `memory_mib`; at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guaranteed_mib: Option<u32>,
    /// Its share of what is left beyond the guarantees, 1 to 10,000 (100 is usual); at once. Root and the `garret` group only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Gives the machine to the account that its uid has now, which must have this name: the uid may have been another
    /// person's before. Root and the `garret` group only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// One developer's machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Machine {
    /// Its id: it is never changed and never used again.
    pub id: MachineId,
    /// The developer: the account's name, or its uid as digits where it has none.
    pub developer: String,
    /// Their uid.
    pub uid: u32,
    /// What should be.
    pub desired: Desired,
    /// What is.
    pub phase: MachinePhase,
    /// Why, in one line: `running`, `killed by signal 9 (SIGKILL)`, `guest kernel panic: …`.
    pub reason: String,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// The most memory it can have, in MiB: what it was promised.
    pub memory_mib: u32,
    /// Memory that is its own whatever the others do, in MiB.
    pub guaranteed_mib: u32,
    /// Its share of what is left beyond the guarantees; 100 is usual.
    pub weight: u32,
    /// The VMM's process id on the host, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm_pid: Option<u32>,
    /// How far Landlock confines the VMM, while it runs and says so. Anything but `enforced` is worth a look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landlock: Option<Landlock>,
    /// When the present phase began, in seconds since 1970.
    pub since: u64,
    /// The number of its newest event: `events?after=` this shows only what is new.
    pub last_event: u64,
    /// The last operation on the machine: after a request that changed something, the one that it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
}

/// What a machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MachinePhase {
    /// It stands still; its disk is kept.
    Stopped,
    /// On its way up.
    Starting,
    /// The agent answers.
    Running,
    /// On its way down.
    Stopping,
    /// It ended without a request, or it could not start.
    Failed,
    /// What only a newer version understands.
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
    /// What should be.
    pub desired: Desired,
    /// The devcontainer.json to use, relative to the workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// The caller's environment for `${localEnv:…}`, in place of what is kept; as far as the policy lets it through. Absent:
    /// what is kept stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_env: Option<BTreeMap<String, String>>,
    /// Remove the container first and build it again. A key of at most 64 bytes: a request that is repeated with
    /// the same key, because its answer was lost, does not rebuild twice.
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
    /// Whose machine that is.
    pub developer: String,
    /// Their uid.
    pub uid: u32,
    /// The workspace.
    #[schema(value_type = String)]
    pub workspace: PathBuf,
    /// What should be.
    pub desired: Desired,
    /// Counts the runs: each `PUT` that changes something begins one, and so does each start of the machine.
    pub generation: u64,
    /// The generation the status speaks of.
    pub observed_generation: u64,
    /// What is, as the agent last told; `stopped` while the machine does not run.
    pub status: EnvironmentStatus,
    /// The number of its newest event: `events?after=` this shows only what is new.
    pub last_event: u64,
    /// The last operation on it: after a request that changed something, the one that it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Its number; they grow.
    pub id: u64,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// The machine that it is about.
    pub machine: MachineId,
    /// Whose machine that is.
    pub developer: String,
    /// The environment it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// What.
    #[serde(deserialize_with = "event_kind")]
    pub what: EventKind,
}

/// Anything that this version does not know, however deep, is [`EventKind::Unknown`].
fn event_kind<'de, D: serde::Deserializer<'de>>(from: D) -> Result<EventKind, D::Error> {
    let value = serde_json::Value::deserialize(from)?;
    Ok(serde_json::from_value(value).unwrap_or(EventKind::Unknown))
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum EventKind {
    /// A machine came into a phase.
    Machine {
        /// The new phase.
        phase: MachinePhase,
        /// Why, in one line.
        reason: String,
    },
    /// A step of starting an environment.
    Environment {
        /// The generation it is about.
        generation: u64,
        /// The step.
        progress: Progress,
    },
    /// A run that stopped an environment has ended. Runs that bring one up end with a step: `ready`, or `failed`, whose
    /// problem has the code `cancelled` if another request took the run's place. One that could not stop it ends with
    /// `failed` too. Each run has one such last event.
    Stopped {
        /// The generation of the run.
        generation: u64,
    },
    /// An environment and its container are gone.
    Removed {
        /// Its last generation.
        generation: u64,
    },
    /// Memory was taken from a machine, or given back after that.
    Squeeze {
        /// By which means.
        means: Means,
        /// Bytes it may hold from now on, or bytes taken where the means is `swap`.
        bytes: u64,
        /// Why, in one line with numbers.
        reason: String,
    },
    /// Something is wrong that no step tells of. What is tried until it succeeds has one such event, of the first refusal; the
    /// run's last event says how it ended.
    Problem {
        /// What.
        problem: Problem,
    },
    /// What only a newer version understands.
    Unknown,
}

/// How memory is taken from a machine, the gentlest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Means {
    /// Nothing is taken any more.
    Released,
    /// Its agent reclaims what is cold, and what it may plug is lowered.
    Guest,
    /// The host swaps its memory out.
    Swap,
    /// It stands still, so that what was swapped out stays there.
    Paused,
}

/// `GET /v1/top`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Top {
    /// The host.
    pub host: HostMemory,
    /// The machines that the caller may see, in order of their names.
    pub machines: Vec<MachineMemory>,
}

/// The host's memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostMemory {
    /// Memory.
    pub total: u64,
    /// What a program could get without swapping.
    pub available: u64,
    /// Swap.
    pub swap_total: u64,
    /// Swap that is free.
    pub swap_free: u64,
    /// What the arbiter gives to machines: the memory without the reserve for the host itself.
    pub capacity: u64,
    /// Promised to the machines that should run.
    pub promised: u64,
    /// Guaranteed to them.
    pub guaranteed: u64,
    /// What they hold.
    pub resident: u64,
    /// `promised` divided by `total`.
    pub overcommit: f64,
    /// Memory pressure: per cent of the last 10 s in which some task waited; absent on a host without PSI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure_some: Option<f64>,
    /// The same of all tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure_full: Option<f64>,
}

/// One running machine's memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MachineMemory {
    /// Whose it is.
    pub developer: String,
    /// The most it can have.
    pub promised: u64,
    /// Its own whatever the others do.
    pub guaranteed: u64,
    /// Its share of what is left.
    pub weight: u32,
    /// What its guest may use now: memory at boot and what it may plug.
    pub limit: u64,
    /// What it should hold of the host's memory, as the arbiter sees it.
    pub target: u64,
    /// What it holds of the host's memory.
    pub resident: u64,
    /// What the host has swapped out of it.
    pub swapped: u64,
    /// What it holds and uses: without what is free or cold in the guest.
    pub working_set: u64,
    /// Memory pressure in the guest: per cent of the last 10 s in which some task waited; absent if it does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure_some: Option<f64>,
    /// What is being done to it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "means")]
    pub squeezed: Option<Means>,
    /// Times something in the guest was killed for lack of memory, containers' own limits not counted.
    pub oom_kills: u64,
}

/// Means that this version does not know are none.
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
