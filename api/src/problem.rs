//! Problems: the error type that all three APIs return (RFC 9457).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::one_line;

/// Why a request was rejected or an operation failed.
///
/// The body of an answer whose status is 4xx or 5xx is a [`ProblemDetails`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    /// The kind of the problem, for programs.
    pub code: Code,
    /// One line for a person: what is wrong, where, and what to do.
    pub detail: String,
}

/// The kind of a problem. Names do not change between versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The request is not valid.
    Invalid,
    /// The caller may not do that.
    Forbidden,
    /// It does not exist, or the caller may not see it.
    NotFound,
    /// The path exists but does not support the method.
    MethodNotAllowed,
    /// The current state does not allow the request.
    Conflict,
    /// The host does not have enough memory.
    NoMemory,
    /// A device of the machine is too busy: try again.
    Busy,
    /// Another request replaced this one.
    Cancelled,
    /// The body is too large.
    TooLarge,
    /// The path is only available as a WebSocket.
    UpgradeRequired,
    /// An error in garret, or in the system that it runs on.
    Internal,
    /// A part of garret is not available at the moment: try again.
    Unavailable,
    /// The operation's deadline has passed.
    Deadline,
    /// The machine's data disk is full.
    DiskFull,
    /// The host's disk is full or reports errors, so the machine's writes wait or fail.
    HostDisk,
    /// A lifecycle command ended with a status other than 0.
    CommandFailed,
    /// The image cannot be pulled.
    ImageUnavailable,
    /// The image cannot be built.
    BuildFailed,
    /// The container engine failed.
    EngineFailed,
    /// The machine was stopped.
    Stopped,
    /// The machine ended without a request.
    MachineEnded,
    /// The machine could not be set up.
    MachineFailed,
    /// The guest did not power off in time.
    PowerCut,
    /// A process of the machine still uses a removed workspace.
    WorkspaceHeld,
    /// The program does not exist; a shell reports this as 127.
    NoSuchProgram,
    /// The program cannot be executed; a shell reports this as 126.
    NotExecutable,
    /// A value of a newer version.
    #[serde(other)]
    Unknown,
}

impl Code {
    /// The HTTP status of an answer with this problem (RFC 9110 §15, RFC 4918 §11.5).
    pub fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Forbidden => 403,
            Self::NotFound | Self::NoSuchProgram => 404,
            Self::MethodNotAllowed => 405,
            Self::Conflict | Self::NoMemory | Self::Busy | Self::Cancelled | Self::Stopped => 409,
            Self::TooLarge => 413,
            Self::UpgradeRequired => 426,
            Self::Unavailable => 503,
            Self::Deadline => 504,
            Self::DiskFull => 507,
            Self::Internal
            | Self::HostDisk
            | Self::CommandFailed
            | Self::ImageUnavailable
            | Self::BuildFailed
            | Self::EngineFailed
            | Self::MachineEnded
            | Self::MachineFailed
            | Self::PowerCut
            | Self::WorkspaceHeld
            | Self::NotExecutable
            | Self::Unknown => 500,
        }
    }
}

/// A problem as the body of an answer, `application/problem+json` (RFC 9457). It has no `type`: `code` replaces the
/// URI.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemDetails {
    /// The answer's HTTP status.
    pub status: u16,
    /// What is wrong.
    #[serde(flatten)]
    pub problem: Problem,
}

/// The media type of [`ProblemDetails`].
pub const PROBLEM_JSON: &str = "application/problem+json";

impl Problem {
    /// A problem with one line for a person.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }

    /// Converts the text by [`one_line`], for problems from an untrusted peer.
    pub fn clipped(self) -> Self {
        Self { detail: one_line(&self.detail), ..self }
    }
}

impl From<Problem> for ProblemDetails {
    fn from(problem: Problem) -> Self {
        Self { status: problem.code.status(), problem }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_problem_is_written_by_its_standard() {
        let details = ProblemDetails::from(Problem::new(Code::NoMemory, "the host has 2 GiB"));
        let text = json!({"status": 409, "code": "no-memory", "detail": "the host has 2 GiB"});
        assert_eq!(serde_json::to_value(&details).unwrap(), text);
        assert_eq!(serde_json::from_value::<ProblemDetails>(text).unwrap(), details);
    }

    #[test]
    fn every_code_has_a_status_of_an_error() {
        for (name, status) in [
            ("invalid", 400),
            ("forbidden", 403),
            ("not-found", 404),
            ("no-such-program", 404),
            ("method-not-allowed", 405),
            ("conflict", 409),
            ("no-memory", 409),
            ("busy", 409),
            ("cancelled", 409),
            ("stopped", 409),
            ("too-large", 413),
            ("upgrade-required", 426),
            ("internal", 500),
            ("host-disk", 500),
            ("command-failed", 500),
            ("image-unavailable", 500),
            ("build-failed", 500),
            ("engine-failed", 500),
            ("machine-ended", 500),
            ("machine-failed", 500),
            ("power-cut", 500),
            ("workspace-held", 500),
            ("not-executable", 500),
            ("unknown", 500),
            ("unavailable", 503),
            ("deadline", 504),
            ("disk-full", 507),
        ] {
            let code: Code = serde_json::from_value(json!(name)).unwrap();
            assert_eq!((serde_json::to_value(code).unwrap(), code.status()), (json!(name), status));
        }
    }

    #[test]
    fn problems_of_other_versions_are_read() {
        let newer: Problem = serde_json::from_value(json!({"code": "no-quota", "detail": "d", "x": 1})).unwrap();
        assert_eq!(newer, Problem::new(Code::Unknown, "d"));
    }
}
