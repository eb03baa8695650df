//! Operations: what clients of the host API requested, and how each request ended.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{MachineId, Problem};

/// A change that a client requested, from the request to its one outcome. A machine, and each environment, has at most
/// one operation without an outcome: another request ends it as cancelled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// 32 hexadecimal digits.
    pub id: String,
    /// What was requested.
    pub kind: OperationKind,
    /// The machine it is about, or whose environment it is about.
    pub machine: MachineId,
    /// Whose machine that is.
    pub developer: String,
    /// The developer's uid.
    pub uid: u32,
    /// The environment; absent if it is about the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// The generation of the environment's run; absent if it is about the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The uid of the client that requested it.
    pub requested_by: u32,
    /// When it was requested, in milliseconds since 1970.
    pub begun_ms: u64,
    /// If it has no outcome by this time, in milliseconds since 1970, it fails with the code `deadline`. An
    /// environment's start has no deadline: a build may take hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// The last step that began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// When it ended, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// How it ended; absent while it is in progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

/// What was requested of a machine or an environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// Start the machine or the container.
    Start,
    /// Remove the environment's container and build it again.
    Rebuild,
    /// Stop it. Its data is kept.
    Stop,
    /// Remove the machine with its data disk, or the environment's container.
    Remove,
    /// A value of a newer version.
    #[serde(other)]
    Unknown,
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "result")]
pub enum Outcome {
    /// The requested state was reached.
    Succeeded,
    /// The requested state was not reached.
    Failed {
        /// What is wrong and what to do.
        problem: Problem,
    },
    /// Another request replaced it.
    Cancelled {
        /// The request that replaced it, in one line.
        reason: String,
    },
    /// A value of a newer version.
    #[serde(other)]
    Unknown,
}
