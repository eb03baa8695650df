//! A server of the guest API on a Unix socket, and a client of its WebSockets.
#![allow(dead_code, reason = "each test file uses a part")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use garret_agent::{Agent, serve};
use garret_api::agent::ExecRequest;
use garret_api::stream::{Control, Outcome, STDERR, STDIN_CREDITS, STDOUT, ServerMessage};
use tokio::net::{UnixListener, UnixStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;

/// How long a step may take before the test fails; no test depends on the actual time.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

type Socket = WebSocketStream<UnixStream>;

/// A separate server for one test.
pub(crate) struct Server {
    folder: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let agent = Agent::new(folder.path().join("state"), folder.path().join("run"), None);
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        tokio::spawn(serve(listener, agent));
        Self { folder }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }
}

pub(crate) fn request(command: &[&str]) -> ExecRequest {
    ExecRequest { command: command.iter().map(|&word| word.into()).collect(), ..Default::default() }
}

pub(crate) fn control(control: &Control) -> Message {
    Message::text(serde_json::to_string(control).unwrap())
}

/// One exec stream, with a separate server.
pub(crate) struct Session {
    _server: Server,
    socket: Option<Socket>,
    early: End,
}

/// Everything that a stream returned.
pub(crate) struct End {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub outcome: Outcome,
    /// Frames of input that were granted.
    pub credit: u32,
}

impl End {
    fn new() -> Self {
        Self { stdout: Vec::new(), stderr: Vec::new(), outcome: Outcome::Signaled(0), credit: 0 }
    }

    /// Handles one frame; returns whether it was the last.
    fn take(&mut self, message: Message) -> bool {
        match message {
            Message::Binary(data) => match data[0] {
                STDOUT => self.stdout.extend_from_slice(&data[1..]),
                STDERR => self.stderr.extend_from_slice(&data[1..]),
                other => panic!("a frame on channel {other}"),
            },
            Message::Text(text) => match serde_json::from_str(&text).unwrap() {
                ServerMessage::Credit { credit } => self.credit += credit,
                ServerMessage::Outcome(outcome) => {
                    self.outcome = outcome;
                    return true;
                }
            },
            Message::Close(_) => panic!("closed without an outcome"),
            _ => {}
        }
        false
    }
}

impl Session {
    pub(crate) async fn connect() -> Self {
        let server = Server::start();
        let stream = UnixStream::connect(server.socket()).await.unwrap();
        let (socket, _) = tokio_tungstenite::client_async("ws://guest/v1/exec", stream).await.unwrap();
        Self { _server: server, socket: Some(socket), early: End::new() }
    }

    /// Opens a stream of a client with flow-control credits.
    pub(crate) async fn open_with_credits(request: ExecRequest) -> Self {
        let server = Server::start();
        let stream = UnixStream::connect(server.socket()).await.unwrap();
        let mut asked = "ws://guest/v1/exec".into_client_request().unwrap();
        asked.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(STDIN_CREDITS));
        let (socket, _) = tokio_tungstenite::client_async(asked, stream).await.unwrap();
        let mut session = Self { _server: server, socket: Some(socket), early: End::new() };
        session.send(Message::text(serde_json::to_string(&request).unwrap())).await;
        session
    }

    pub(crate) async fn open(request: ExecRequest) -> Self {
        let mut session = Self::connect().await;
        session.send(Message::text(serde_json::to_string(&request).unwrap())).await;
        session
    }

    pub(crate) async fn send(&mut self, message: Message) {
        self.socket.as_mut().unwrap().send(message).await.unwrap();
    }

    pub(crate) async fn control(&mut self, message: Control) {
        self.send(control(&message)).await;
    }

    /// Reads until standard output contains `text`.
    pub(crate) async fn await_output(&mut self, text: &str) {
        let socket = self.socket.as_mut().unwrap();
        let early = &mut self.early;
        let reading = async {
            while !String::from_utf8_lossy(&early.stdout).contains(text) {
                let message = socket.next().await.unwrap().unwrap();
                assert!(!early.take(message), "it ended: {:?}", early.outcome);
            }
        };
        tokio::time::timeout(TIMEOUT, reading).await.expect("the output did not come");
    }

    pub(crate) async fn end(&mut self) -> End {
        let mut end = std::mem::replace(&mut self.early, End::new());
        let socket = self.socket.as_mut().unwrap();
        let reading = async { while !end.take(socket.next().await.unwrap().unwrap()) {} };
        tokio::time::timeout(TIMEOUT, reading).await.expect("the stream did not end");
        end
    }

    pub(crate) fn split(&mut self) -> (SplitSink<Socket, Message>, SplitStream<Socket>) {
        self.socket.take().unwrap().split()
    }

    /// Without a closing handshake.
    pub(crate) fn drop_connection(&mut self) {
        self.socket = None;
    }
}

pub(crate) async fn collect(mut source: SplitStream<Socket>) -> End {
    let mut end = End::new();
    let reading = async { while !end.take(source.next().await.unwrap().unwrap()) {} };
    tokio::time::timeout(TIMEOUT, reading).await.expect("the stream did not end");
    end
}

/// Waits until the condition is true.
pub(crate) async fn eventually(mut so: impl FnMut() -> bool) {
    let waiting = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, waiting).await.expect("it never came true");
}

/// Waits until the value has not changed for a while, and returns it.
pub(crate) async fn settled<T: PartialEq>(mut value: impl FnMut() -> T) -> T {
    let mut last = value();
    let mut same = 0;
    while same < 20 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = value();
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    last
}

/// The process id of the descendant of this test with this name.
pub(crate) async fn child_named(name: &str) -> u32 {
    let mut found = None;
    eventually(|| {
        found = descendants(std::process::id())
            .into_iter()
            .find(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name));
        found.is_some()
    })
    .await;
    found.unwrap()
}

fn descendants(pid: u32) -> Vec<u32> {
    let tasks =
        std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task")).into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<u32> = children
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect();
    children.iter().flat_map(|&child| [vec![child], descendants(child)].concat()).collect()
}

/// The number of bytes that a process has written so far.
pub(crate) fn written_bytes(pid: u32) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse().ok()).unwrap_or_default()
}
