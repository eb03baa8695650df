//! The host API: what `garret daemon` answers on its Unix socket. The peer's uid decides what is seen and allowed.
//!
//! | call | body → answer |
//! |---|---|
//! | `GET /v1/host` | → [`HostInfo`] |
//! | `GET /v1/machines` | → list of [`Machine`] |
//! | `GET /v1/machines/{developer}` | → [`Machine`] |
//! | `PUT /v1/machines/{developer}` | [`MachineRequest`] → [`Machine`]; idempotent |
//! | `DELETE /v1/machines/{developer}` | → 204; the machine and its data disk are removed |
//! | `GET /v1/machines/{developer}/log` | → text: the console's last bytes |
//! | `GET /v1/machines/{developer}/exec` | WebSocket, [`stream`](crate::stream): in the guest itself |
//! | `GET /v1/environments` | → list of [`Environment`] |
//! | `PUT /v1/environments/{id}` | [`EnvironmentRequest`] → [`Environment`]; idempotent |
//! | `GET /v1/environments/{id}` | → [`Environment`] |
//! | `DELETE /v1/environments/{id}` | → 204 |
//! | `GET /v1/environments/{id}/events?after=N&follow=true` | → newline-delimited [`Event`] |
//! | `GET /v1/environments/{id}/log` | → text: the container's own output |
//! | `GET /v1/environments/{id}/exec` | WebSocket: in the devcontainer |
//! | `GET /v1/events?after=N&follow=true` | → newline-delimited [`Event`] of everything the caller may see |

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Problem;
use crate::agent::{EnvironmentStatus, Progress};

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

/// `PUT /v1/machines/{developer}`: absent fields stay as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineRequest {
    /// Whether it should run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired: Option<Desired>,
    /// Virtual CPUs, 1 to 32; used from the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u8>,
    /// Memory in MiB, 256 or more; used from the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
}

/// One developer's machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Machine {
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
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The VMM's process id on the host, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm_pid: Option<u32>,
    /// When the present phase began, in seconds since 1970.
    pub since: u64,
    /// The number of the developer's newest event: `events?after=` this shows only what is new.
    pub last_event: u64,
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
    /// It ended and nobody asked for that, or it could not start.
    Failed,
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
    /// The caller's environment for `${localEnv:…}`; kept in memory and in the state as the policy lets it through.
    #[serde(default)]
    pub local_env: BTreeMap<String, String>,
    /// Remove the container first and build it anew.
    #[serde(default)]
    pub rebuild: bool,
}

/// One devcontainer of one workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Environment {
    /// `<folder name, simplified>-<8 hex digits of uid and path>`.
    pub id: String,
    /// Whose machine it is in.
    pub developer: String,
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
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Its number; they grow.
    pub id: u64,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Whose.
    pub developer: String,
    /// The environment it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// What.
    pub what: Happening,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Happening {
    /// A machine came into a phase.
    Machine {
        /// The new phase.
        phase: MachinePhase,
        /// Why, in one line.
        reason: String,
    },
    /// A step of an environment on its way up.
    Environment {
        /// The generation it is about.
        generation: u64,
        /// The step.
        progress: Progress,
    },
    /// Something is wrong that no step tells of.
    Problem {
        /// What.
        problem: Problem,
    },
}
