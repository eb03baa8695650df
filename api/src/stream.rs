//! The WebSocket protocol of commands and terminals, the same on the agent's and the runner's API.
//!
//! The client opens the WebSocket and sends one text frame, the request (an
//! [`ExecRequest`](crate::agent::ExecRequest)). After it:
//! - binary frames carry bytes; their first byte names the channel ([`STDIN`], [`STDOUT`], [`STDERR`]), the rest is
//!   data;
//! - text frames carry a [`Control`] (client to server) or an [`Outcome`] (server to client, exactly one, last).
//!
//! The WebSocket subprotocol [`STDIN_CREDITS`] limits standard input. If the client offers it and the server selects it,
//! the client sends at most [`STDIN_WINDOW`] frames of standard input. It sends one more for each frame that the server
//! grants by `{"credit": n}`. So the server always reads, and a signal overtakes input that the process does not read.
//! Without the subprotocol, the server reads only as the process reads.
//!
//! With a terminal everything the process prints is on [`STDOUT`]. Either side may close; a closed connection sends the
//! process `SIGHUP`. If the runner ends the stream, its close frame has the reason, which is one line for a person.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a stream between a client and a guest carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StreamKind {
    /// A command or a terminal, by the protocol of this module.
    Exec,
    /// A kind of a newer version.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for StreamKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exec => "exec",
            Self::Unknown => "unknown",
        })
    }
}

/// Channel byte of data for the process's standard input.
pub const STDIN: u8 = 0;
/// Channel byte of data from the process's standard output (or its terminal).
pub const STDOUT: u8 = 1;
/// Channel byte of data from the process's standard error.
pub const STDERR: u8 = 2;
/// The largest frame either side sends, in bytes, channel byte included.
pub const FRAME_MAX: usize = 64 * 1024;
/// The largest request (the first frame), in bytes.
pub const REQUEST_MAX: usize = 1 << 20;
/// The WebSocket subprotocol in which the server grants each frame of standard input.
pub const STDIN_CREDITS: &str = "garret-stdin-credits";
/// Frames of standard input that the client may send without a grant.
pub const STDIN_WINDOW: u32 = 16;

/// A message of the client while the process runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// The terminal's new size, in characters.
    Resize(WindowSize),
    /// Send this signal (its number on x86-64, 1 to 31) to the process group.
    Signal(i32),
    /// Close standard input.
    CloseStdin,
}

/// A terminal's size, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WindowSize {
    /// Rows, 1 or more.
    pub rows: u16,
    /// Columns, 1 or more.
    pub columns: u16,
}

/// A text frame of the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ServerMessage {
    /// The client may send this many more frames of standard input.
    Credit {
        /// 1 to [`STDIN_WINDOW`].
        credit: u32,
    },
    /// The last frame.
    Outcome(Outcome),
}

/// How the process ended: the last frame of the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It exited with this status, 0 to 255.
    Exited(u8),
    /// This signal killed it; a shell would show 128 plus the number.
    Signaled(i32),
    /// It could not be started, or the connection to it was lost.
    Failed(crate::Problem),
}

impl Outcome {
    /// The status a shell would report.
    pub fn status(&self) -> u8 {
        match self {
            Outcome::Exited(status) => *status,
            Outcome::Signaled(signal) => 128u8.wrapping_add(*signal as u8),
            Outcome::Failed(problem) => match problem.code {
                crate::Code::NoSuchProgram => 127,
                crate::Code::NotExecutable => 126,
                _ => 125,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_and_an_outcome_are_distinguished() {
        let read = |text: &str| serde_json::from_str::<ServerMessage>(text).unwrap();
        assert_eq!(read(r#"{"credit": 3}"#), ServerMessage::Credit { credit: 3 });
        assert_eq!(read(r#"{"exited": 3}"#), ServerMessage::Outcome(Outcome::Exited(3)));
    }
}
