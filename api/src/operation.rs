//! Operations: what clients of the host API requested, and how each request ended.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{MachineId, Problem};

/// A change that a client requested, from the request to its one outcome. A machine, and each environment, has at most
/// one without an outcome: another request ends it as cancelled.
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
    /// Their uid.
    pub uid: u32,
    /// The environment; absent if it is about the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// The environment's run that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The uid of the client that requested it.
    pub requested_by: u32,
    /// When, in milliseconds since 1970.
    pub begun_ms: u64,
    /// Without an outcome by then, it fails with the code `deadline`; in milliseconds since 1970. An environment's start
    /// has none: a build may take hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// The last step that has begun.
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
    /// The machine or the container should run.
    Start,
    /// Remove the environment's container, and start it again.
    Rebuild,
    /// It should not run; its data is kept.
    Stop,
    /// The machine with its data disk, or the environment's container, should be gone.
    Remove,
    /// A kind of a newer version.
    #[serde(other)]
    Unknown,
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "result")]
pub enum Outcome {
    /// The requested state was reached.
    Succeeded,
    /// It was not.
    Failed {
        /// Why.
        problem: Problem,
    },
    /// Another request took its place.
    Cancelled {
        /// Which, in one line.
        reason: String,
    },
    /// An outcome of a newer version.
    #[serde(other)]
    Unknown,
}
