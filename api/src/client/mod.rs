//! One client for all three APIs: HTTP/1.1 over a Unix socket, or over a machine's vsock socket after its handshake.
//!
//! Each call opens a separate connection: a call that hangs or a guest that misbehaves disturbs no other call. The peer
//! may be a guest, so everything that it sends is bounded: answers by [`BODY_MAX`], lines by [`LINE_MAX`], WebSocket
//! frames by [`FRAME_MAX`], quotations in an [`Error`] by [`one_line`], and waiting by the
//! client's deadline.

use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::{ProtocolError, SubProtocolError};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use crate::stream::{FRAME_MAX, STDIN_CREDITS};
use crate::{Code, Problem, one_line};

/// The largest answer that is read whole, in bytes, unless it is set by [`Client::with_body_max`].
pub const BODY_MAX: usize = 16 << 20;
/// The largest error response, in bytes.
const REFUSAL_MAX: usize = 64 << 10;
/// The longest line of a stream of JSON lines, in bytes.
pub const LINE_MAX: usize = 1 << 20;
/// The most consecutive empty lines: a peer that sends nothing else would keep its reader busy.
const BLANK_MAX: u32 = 100;
/// How long a call may take, unless it is set by [`Client::with_deadline`]. For streams it ends when they begin.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// An open WebSocket, which carries an exec stream.
pub type WebSocket = WebSocketStream<UnixStream>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket does not exist, or no process listens on it.
    #[error("cannot connect to {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The machine runs, but nothing in it listens on the port (yet).
    #[error("nothing in the machine listens on vsock port {port}")]
    NoListener {
        /// The vsock port.
        port: u32,
    },
    /// The server rejected the request.
    #[error("{problem}")]
    Problem {
        /// The HTTP status.
        status: u16,
        /// The reason.
        problem: Problem,
    },
    /// No answer in time.
    #[error("{target} did not answer within {} s", deadline.as_secs())]
    Deadline {
        /// The server.
        target: String,
        /// The time that was waited.
        deadline: Duration,
    },
    /// The connection broke, or the server broke the protocol.
    #[error("{target}: {detail}")]
    Broken {
        /// The server.
        target: String,
        /// What went wrong.
        detail: String,
    },
}

impl Error {
    /// The HTTP status, if the server returned one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Error::Problem { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The problem that the server returned, or this error as a problem.
    pub fn into_problem(self) -> Problem {
        match self {
            Error::Problem { problem, .. } => problem,
            other => Problem::new(Code::Unavailable, other.to_string()),
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        error.into_problem()
    }
}

/// The result of a call.
pub type Result<T> = std::result::Result<T, Error>;

/// The address of the API.
#[derive(Clone, Debug)]
enum Target {
    Unix(PathBuf),
    Vsock { socket: PathBuf, port: u32 },
}

impl Target {
    fn path(&self) -> &Path {
        match self {
            Target::Unix(path) | Target::Vsock { socket: path, .. } => path,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Unix(path) => write!(f, "{}", path.display()),
            Target::Vsock { socket, port } => write!(f, "vsock port {port} of {}", socket.display()),
        }
    }
}

/// A client of one API.
#[derive(Clone, Debug)]
pub struct Client {
    target: Target,
    deadline: Duration,
    body_max: usize,
    process: Option<u32>,
}

impl Client {
    fn new(target: Target) -> Self {
        Self { target, deadline: DEADLINE, body_max: BODY_MAX, process: None }
    }

    /// A client of the API on a Unix socket (runner, VMM).
    pub fn unix(socket: impl Into<PathBuf>) -> Self {
        Self::new(Target::Unix(socket.into()))
    }

    /// A client of the API on a vsock port of a guest (agent), through its VMM's vsock socket.
    pub fn vsock(socket: impl Into<PathBuf>, port: u32) -> Self {
        Self::new(Target::Vsock { socket: socket.into(), port })
    }

    /// The same, but rejects every peer except the process with this id, by the socket's credentials.
    pub fn of_process(mut self, pid: u32) -> Self {
        self.process = Some(pid);
        self
    }

    /// The same with another deadline per call.
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The same with another limit for answers, in bytes: for a peer that is not trusted.
    pub fn with_body_max(mut self, body_max: usize) -> Self {
        self.body_max = body_max;
        self
    }

    /// `GET`, answered by JSON.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.json(self.unary(Method::GET, path, None).await?)
    }

    /// `PUT` of JSON, answered by JSON.
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.json(self.unary(Method::PUT, path, Some(self.encode(body)?)).await?)
    }

    /// Any call; the body of the response is ignored.
    pub async fn send<B: Serialize>(&self, method: Method, path: &str, body: Option<&B>) -> Result<()> {
        let body = body.map(|body| self.encode(body)).transpose()?;
        self.unary(method, path, body).await.map(drop)
    }

    /// `POST` without a body; the body of the response is ignored.
    pub async fn post(&self, path: &str) -> Result<()> {
        self.send::<()>(Method::POST, path, None).await
    }

    /// `DELETE`.
    pub async fn delete(&self, path: &str) -> Result<()> {
        self.send::<()>(Method::DELETE, path, None).await
    }

    /// `GET`, answered by text; bytes that are not UTF-8 are replaced.
    pub async fn text(&self, path: &str) -> Result<String> {
        let body = self.unary(Method::GET, path, None).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// A call answered by newline-delimited JSON.
    pub async fn lines<T: DeserializeOwned, B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<Lines<T>> {
        let body = body.map(|body| self.encode(body)).transpose()?;
        let response = self.in_time(self.request(method, path, body)).await?;
        Ok(Lines::new(self.target.clone(), response.into_body()))
    }

    /// Opens an exec stream; true if standard input is granted by the frame ([`STDIN_CREDITS`]).
    pub async fn exec_stream(&self, path: &str) -> Result<(WebSocket, bool)> {
        if let Some(socket) = self.websocket(path, Some(STDIN_CREDITS)).await? {
            return Ok((socket, true));
        }
        // An older agent selects no protocol, and a client that offered one must not continue then (RFC 6455, 4.1).
        let socket = self.websocket(path, None).await?;
        Ok((socket.ok_or_else(|| self.broken("a WebSocket protocol that was not asked for"))?, false))
    }

    /// Opens a WebSocket; `None` if the server does not know the protocol.
    async fn websocket(&self, path: &str, protocol: Option<&'static str>) -> Result<Option<WebSocket>> {
        let config = WebSocketConfig::default().max_message_size(Some(FRAME_MAX)).max_frame_size(Some(FRAME_MAX));
        let handshake = async {
            let stream = self.connect().await?;
            let mut request = format!("ws://garret{path}").into_client_request().map_err(|error| self.broken(error))?;
            if let Some(protocol) = protocol {
                request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
            }
            match tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await {
                Ok((socket, _)) => Ok(Some(socket)),
                Err(tungstenite::Error::Protocol(ProtocolError::SecWebSocketSubProtocolError(
                    SubProtocolError::NoSubProtocol,
                ))) => Ok(None),
                Err(tungstenite::Error::Http(response)) => {
                    Err(refusal(response.status(), response.body().as_deref().unwrap_or_default()))
                }
                Err(error) => Err(self.broken(error)),
            }
        };
        self.in_time(handshake).await
    }

    /// Sends a request unchanged over a separate connection, which the response may upgrade: for proxies.
    pub async fn forward(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        self.in_time(self.exchange(request)).await
    }

    async fn unary(&self, method: Method, path: &str, body: Option<Bytes>) -> Result<Bytes> {
        self.in_time(async {
            let response = self.request(method, path, body).await?;
            let body = Limited::new(response.into_body(), self.body_max).collect().await;
            Ok(body.map_err(|error| self.broken(error))?.to_bytes())
        })
        .await
    }

    /// One request; an answer that is not 2xx is an error.
    async fn request(&self, method: Method, path: &str, body: Option<Bytes>) -> Result<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, "garret");
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body.unwrap_or_default())).map_err(|error| self.broken(error))?;
        let response = self.exchange(request).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body =
            Limited::new(response.into_body(), REFUSAL_MAX).collect().await.map_err(|error| self.broken(error))?;
        Err(refusal(status, &body.to_bytes()))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        let stream = self.connect().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(error))?;
        // The task ends when the request and the response's body have been dropped; these also report its error.
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.map_err(|error| self.broken(error))
    }

    async fn connect(&self) -> Result<UnixStream> {
        let path = self.target.path();
        let mut stream =
            UnixStream::connect(path).await.map_err(|source| Error::Connect { path: path.to_owned(), source })?;
        if let Some(expected) = self.process {
            let found = stream.peer_cred().map_err(|error| self.broken(error))?.pid();
            if found.and_then(|pid| u32::try_from(pid).ok()) != Some(expected) {
                return Err(self.broken(format!("another process than {expected} listens on the socket")));
            }
        }
        if let Target::Vsock { port, .. } = self.target {
            self.shake_hands(&mut stream, port).await?;
        }
        Ok(stream)
    }

    /// Writes `CONNECT <port>` and reads `OK <n>`, byte by byte, so that no later bytes are consumed.
    async fn shake_hands(&self, stream: &mut UnixStream, port: u32) -> Result<()> {
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).await.map_err(|error| self.broken(error))?;
        let mut answer = Vec::new();
        loop {
            match stream.read_u8().await {
                Ok(b'\n') => break,
                Ok(byte) if answer.len() < 32 => answer.push(byte),
                Ok(_) => return Err(self.broken("unexpected answer to the vsock handshake")),
                Err(_) => return Err(Error::NoListener { port }),
            }
        }
        match answer.starts_with(b"OK ") {
            true => Ok(()),
            false => Err(self.broken("unexpected answer to the vsock handshake")),
        }
    }

    async fn in_time<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::time::timeout(self.deadline, call)
            .await
            .unwrap_or_else(|_| Err(Error::Deadline { target: self.target.to_string(), deadline: self.deadline }))
    }

    fn encode(&self, body: &impl Serialize) -> Result<Bytes> {
        serde_json::to_vec(body).map(Bytes::from).map_err(|error| self.broken(error))
    }

    fn json<T: DeserializeOwned>(&self, body: Bytes) -> Result<T> {
        serde_json::from_slice(&body).map_err(|error| self.broken(format!("unexpected answer: {error}")))
    }

    fn broken(&self, detail: impl fmt::Display) -> Error {
        broken(&self.target, detail)
    }
}

fn broken(target: &Target, detail: impl fmt::Display) -> Error {
    // A parser's error quotes the value that it rejects, which may be as large as the answer.
    Error::Broken { target: target.to_string(), detail: one_line(&detail.to_string()) }
}

/// Converts a response other than 2xx to an error; its body should be a [`Problem`]. The message becomes one line, so
/// that a guest cannot write additional lines into a log.
fn refusal(status: StatusCode, body: &[u8]) -> Error {
    let problem: Problem = serde_json::from_slice(body).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(body);
        let line = text.lines().next().unwrap_or_default().to_owned();
        Problem::new(Code::Internal, if line.is_empty() { status.to_string() } else { line })
    });
    Error::Problem { status: status.as_u16(), problem: problem.clipped() }
}

/// A stream of newline-delimited JSON.
#[derive(Debug)]
pub struct Lines<T> {
    target: Target,
    body: Incoming,
    /// The received bytes; `start..searched` contains no end of line. Offsets, because moving or searching the whole
    /// buffer again for each piece would let a peer that sends tiny pieces waste our CPU time.
    buffer: Vec<u8>,
    start: usize,
    searched: usize,
    item: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Lines<T> {
    fn new(target: Target, body: Incoming) -> Self {
        Self { target, body, buffer: Vec::new(), start: 0, searched: 0, item: PhantomData }
    }

    /// The next value; `None` when the stream has ended. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<T>> {
        let mut blank = 0;
        loop {
            while let Some(line) = self.line() {
                let line = &self.buffer[line];
                if !line.trim_ascii().is_empty() {
                    return serde_json::from_slice(line).map(Some).map_err(|error| self.broken(error));
                }
                blank += 1;
                if blank > BLANK_MAX {
                    return Err(self.broken("nothing but empty lines"));
                }
            }
            if self.buffer.len() > LINE_MAX {
                return Err(self.broken(format!("a line longer than {LINE_MAX} bytes")));
            }
            match self.body.frame().await {
                None if self.buffer.trim_ascii().is_empty() => return Ok(None),
                None => return Err(self.broken("the stream ended in the middle of a line")),
                Some(Err(error)) => return Err(self.broken(error)),
                Some(Ok(frame)) => self.buffer.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
            }
        }
    }

    /// Takes the next whole line. If there is none, moves the rest to the buffer's front.
    fn line(&mut self) -> Option<std::ops::Range<usize>> {
        let Some(length) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') else {
            self.buffer.drain(..self.start);
            (self.start, self.searched) = (0, self.buffer.len());
            return None;
        };
        let line = self.start..self.searched + length;
        (self.start, self.searched) = (line.end + 1, line.end + 1);
        Some(line)
    }

    fn broken(&self, detail: impl fmt::Display) -> Error {
        broken(&self.target, detail)
    }
}

#[cfg(test)]
mod tests;
