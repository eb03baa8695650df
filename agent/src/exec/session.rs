//! One WebSocket, one process: the protocol of [`garret_api::stream`].
//!
//! Every buffer is bounded. A client that reads slowly stops the process's output. A process that reads slowly stops
//! the client's input once [`STDIN_WINDOW`] frames wait. A client with flow-control credits stops by itself, so that
//! the agent can still read its signals. The socket is pinged, so that a lost client is noticed even when no data is
//! read.

use std::io;
use std::pin::pin;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use garret_api::agent::ExecRequest;
use garret_api::stream::{Control, FRAME_MAX, Outcome, STDIN, STDIN_WINDOW, ServerMessage};
use garret_api::{Code, Problem};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::running::{Handle, Running};
use super::{Place, ProcessSpec, container, spawn};

/// Frames of output that wait for the client.
const OUTPUT_FRAMES: usize = 4;
/// Input frames that wait for the process: data, and one end of input.
const INPUTS_MAX: usize = STDIN_WINDOW as usize + 1;
/// Frames from the client that are kept while the process starts.
const EARLY_MAX: usize = 2 * INPUTS_MAX;
/// How long a process may take to start. In a container that is paused, the runtime never returns.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the client may take to send the first frame.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the streams may be silent after the process has ended, when other processes still hold them open, before
/// the session ends.
const LINGER: Duration = Duration::from_millis(200);
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// A terminal's end-of-file character.
const EOT: u8 = 4;

/// The connection to the client is lost.
struct Lost;

/// Input for the process.
enum Input {
    Data(axum::body::Bytes),
    End,
}

/// Reads the request, starts the process that `prepare` returns for it, and relays until the process or the connection
/// ends. With `credits`, the agent grants the client each frame of input.
pub(crate) async fn serve<P, F>(mut socket: WebSocket, credits: bool, prepare: P)
where
    P: FnOnce(ExecRequest) -> F,
    F: Future<Output = Result<ProcessSpec, Problem>>,
{
    let mut early = Vec::new();
    let started = match first_frame(&mut socket).await {
        Ok(request) => match while_connected(&mut socket, &mut early, start(prepare(request))).await {
            Ok(started) => started,
            Err(Lost) => return,
        },
        Err(problem) => Err(problem),
    };
    let outcome = match started {
        Ok(running) => match relay(socket, early, credits, running).await {
            Ok((reunited, outcome)) => {
                socket = reunited;
                outcome
            }
            Err(Lost) => return,
        },
        Err(problem) => Outcome::Failed(problem),
    };
    let text = serde_json::to_string(&outcome).expect("an outcome is plain data");
    if socket.send(Message::text(text)).await.is_ok() {
        let _ = socket.send(Message::Close(None)).await;
        // Wait for the client's close: if the connection were dropped at once, the last frames could be lost.
        let _ = tokio::time::timeout(REQUEST_TIMEOUT, async { while let Some(Ok(_)) = socket.recv().await {} }).await;
    }
}

async fn start(prepared: impl Future<Output = Result<ProcessSpec, Problem>>) -> Result<Running, Problem> {
    let spec = prepared.await?;
    match &spec.place {
        Place::Guest => spawn::spawn(&spec).await,
        Place::Container { id } => container::spawn(id, &spec).await,
    }
}

/// Waits for `starting` within the time limit, and only while the client is connected. Frames that arrive meanwhile are
/// added to `early`.
async fn while_connected<T>(
    socket: &mut WebSocket,
    early: &mut Vec<Message>,
    starting: impl Future<Output = Result<T, Problem>>,
) -> Result<Result<T, Problem>, Lost> {
    let deadline = Instant::now() + START_TIMEOUT;
    let mut starting = pin!(starting);
    loop {
        tokio::select! {
            started = &mut starting => return Ok(started),
            message = socket.recv(), if early.len() < EARLY_MAX => match message {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(Lost),
                Some(Ok(message)) => early.push(message),
            },
            () = sleep_until(deadline) => {
                let message = format!(
                    "the command did not start within {} s; its container may be paused or out of memory",
                    START_TIMEOUT.as_secs()
                );
                return Ok(Err(Problem::new(Code::Unavailable, message)));
            }
        }
    }
}

async fn first_frame(socket: &mut WebSocket) -> Result<ExecRequest, Problem> {
    let invalid = |what: String| Problem::new(Code::Invalid, what);
    let frame = tokio::time::timeout(REQUEST_TIMEOUT, socket.recv()).await;
    match frame {
        Ok(Some(Ok(Message::Text(text)))) => {
            let request: ExecRequest =
                serde_json::from_str(&text).map_err(|error| invalid(format!("the request is not valid: {error}")))?;
            match request.terminal {
                Some(size) if size.rows == 0 || size.columns == 0 => {
                    Err(invalid("a terminal has 1 row and 1 column or more".into()))
                }
                _ if has_nul(&request) => Err(invalid("a command, variable or folder contains a NUL byte".into())),
                _ => Ok(request),
            }
        }
        Ok(Some(Ok(_))) => Err(invalid("the first frame must be text, the request".into())),
        Ok(_) => Err(invalid("the connection ended before the request".into())),
        Err(_) => Err(invalid(format!("no request came within {} s", REQUEST_TIMEOUT.as_secs()))),
    }
}

fn has_nul(request: &ExecRequest) -> bool {
    let variables = request.env.iter().flat_map(|(name, value)| [name, value]);
    request.command.iter().chain(variables).chain(&request.cwd).any(|text| text.contains('\0'))
}

/// Relays until the process has ended and the client has received all its output. If the client is lost, the process
/// gets a hangup.
async fn relay(
    socket: WebSocket,
    early: Vec<Message>,
    credits: bool,
    running: Running,
) -> Result<(WebSocket, Outcome), Lost> {
    let Running { stdin, outputs, handle, mut child } = running;
    let (mut sink, mut source) = socket.split();
    let (frames, queued) = mpsc::channel(OUTPUT_FRAMES);
    let (input, waiting) = mpsc::channel(INPUTS_MAX);
    let (grants, granted) = mpsc::channel(INPUTS_MAX);
    let grants = credits.then_some(grants);
    let (ended, has_ended) = watch::channel(false);
    let terminal = handle.terminal.is_some();

    let process = async {
        let outcome = child.wait().await;
        ended.send_replace(true);
        outcome
    };
    let outputs = futures_util::future::join_all(
        outputs.into_iter().map(|(channel, output)| pump_output(channel, output, frames.clone(), has_ended.clone())),
    );
    drop(frames);
    let speaking = async { Ok(tokio::join!(process, outputs).0) };
    let sending = async {
        let (outcome, ()) = tokio::try_join!(speaking, send_frames(&mut sink, queued, granted))?;
        Ok(outcome)
    };
    let receiver = Receiver { handle: &handle, input, credits, ended: false };
    let result = tokio::select! {
        result = sending => result,
        lost = receiver.run(early, &mut source) => Err(lost),
        never = feed_stdin(stdin, waiting, grants, terminal) => match never {},
    };
    match result {
        Ok(outcome) => Ok((sink.reunite(source).map_err(|_| Lost)?, outcome)),
        Err(Lost) => {
            // Once the process has been reaped, another process may have its number.
            if !*has_ended.borrow() {
                handle.hang_up();
            }
            drop(handle);
            // A process that ignores SIGHUP continues to run, as under any terminal; it is still reaped.
            tokio::spawn(async move { child.wait().await });
            Err(Lost)
        }
    }
}

/// Copies one of the process's streams to the queue of frames, until the stream ends. After the process has ended,
/// copies only while the stream still has output.
async fn pump_output(
    channel: u8,
    mut output: pipe::Receiver,
    frames: mpsc::Sender<Message>,
    mut ended: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; FRAME_MAX];
    buffer[0] = channel;
    loop {
        let lingering = async {
            let _ = ended.wait_for(|ended| *ended).await;
            tokio::time::sleep(LINGER).await;
        };
        let read = tokio::select! {
            biased;
            read = output.read(&mut buffer[1..]) => read,
            () = lingering => return,
        };
        match read {
            // A terminal that no process holds open any more returns EIO on read.
            Ok(0) | Err(_) => return,
            Ok(length) => {
                let frame = Message::binary(buffer[..=length].to_vec());
                if frames.send(frame).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn send_frames(
    sink: &mut SplitSink<WebSocket, Message>,
    mut queued: mpsc::Receiver<Message>,
    mut granted: mpsc::Receiver<()>,
) -> Result<(), Lost> {
    let mut ping = tokio::time::interval(PING_INTERVAL);
    ping.tick().await;
    loop {
        let frame = tokio::select! {
            frame = queued.recv() => frame,
            Some(()) = granted.recv() => Some(credit(&mut granted)),
            _ = ping.tick() => Some(Message::Ping(Default::default())),
        };
        match frame {
            Some(frame) => sink.send(frame).await.map_err(|_| Lost)?,
            None => return Ok(()),
        }
    }
}

/// Grants the client one frame, plus one for each other frame that was taken in the meantime.
fn credit(granted: &mut mpsc::Receiver<()>) -> Message {
    let mut credit = 1;
    while granted.try_recv().is_ok() {
        credit += 1;
    }
    let text = serde_json::to_string(&ServerMessage::Credit { credit }).expect("a number is plain data");
    Message::text(text)
}

/// Handles the client's frames while the process runs.
struct Receiver<'a> {
    handle: &'a Handle,
    input: mpsc::Sender<Input>,
    credits: bool,
    /// The client has closed standard input.
    ended: bool,
}

impl Receiver<'_> {
    async fn run(mut self, early: Vec<Message>, source: &mut SplitStream<WebSocket>) -> Lost {
        for message in early {
            if self.take(message).await.is_err() {
                return Lost;
            }
        }
        while let Some(Ok(message)) = source.next().await {
            if self.take(message).await.is_err() {
                return Lost;
            }
        }
        Lost
    }

    async fn take(&mut self, message: Message) -> Result<(), Lost> {
        match message {
            Message::Binary(data) if data.first() == Some(&STDIN) => {
                return self.pass_on(Input::Data(data.slice(1..))).await;
            }
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(Control::Resize(size)) => self.handle.resize(size),
                Ok(Control::Signal(number)) => {
                    if let Err(problem) = self.handle.signal(number) {
                        tracing::warn!("{problem}");
                    }
                }
                Ok(Control::CloseStdin) => {
                    if !std::mem::replace(&mut self.ended, true) {
                        return self.pass_on(Input::End).await;
                    }
                }
                Err(error) => tracing::warn!("a control frame is not valid: {error}"),
            },
            Message::Binary(_) => tracing::warn!("a binary frame of the client is not standard input"),
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(_) => return Err(Lost),
        }
        Ok(())
    }

    /// A client with credits never fills the queue; for a client without, this call waits.
    async fn pass_on(&self, input: Input) -> Result<(), Lost> {
        if !self.credits {
            return self.input.send(input).await.map_err(|_| Lost);
        }
        self.input.try_send(input).map_err(|_| {
            tracing::warn!("a client sent more standard input than it was granted");
            Lost
        })
    }
}

/// Writes to the process's standard input. A process that does not read it is no error: the rest is dropped.
async fn feed_stdin(
    stdin: pipe::Sender,
    mut waiting: mpsc::Receiver<Input>,
    grants: Option<mpsc::Sender<()>>,
    terminal: bool,
) -> std::convert::Infallible {
    let mut stdin = Some(stdin);
    while let Some(input) = waiting.recv().await {
        let data = matches!(input, Input::Data(_));
        let written: io::Result<()> = match (&mut stdin, input) {
            (None, _) => Ok(()),
            (Some(pipe), Input::Data(data)) => pipe.write_all(&data).await,
            (Some(pipe), Input::End) if terminal => pipe.write_all(&[EOT]).await,
            (open, Input::End) => {
                *open = None;
                Ok(())
            }
        };
        if written.is_err() {
            stdin = None;
        }
        if let Some(grants) = grants.as_ref().filter(|_| data) {
            // There are never more grants than waiting frames.
            let _ = grants.try_send(());
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::extract::ws::WebSocketUpgrade;
    use axum::routing::get;
    use tokio::net::{UnixListener, UnixStream};
    use tokio_tungstenite::tungstenite;

    use super::*;

    #[tokio::test]
    async fn a_start_is_cancelled_when_its_client_leaves() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let (told, mut ends) = mpsc::channel(1);
        let start = async move |upgrade: WebSocketUpgrade| {
            upgrade.on_upgrade(async move |mut socket| {
                let (mut early, never) = (Vec::new(), std::future::pending::<Result<(), Problem>>());
                let lost = while_connected(&mut socket, &mut early, never).await.is_err();
                told.send((lost, early)).await.unwrap();
            })
        };
        let router = Router::new().route("/", get(start));
        tokio::spawn(axum::serve(UnixListener::bind(&socket).unwrap(), router).into_future());
        let stream = UnixStream::connect(&socket).await.unwrap();
        let (mut client, _) = tokio_tungstenite::client_async("ws://guest/", stream).await.unwrap();
        client.send(tungstenite::Message::binary(b"\0typed ahead".to_vec())).await.unwrap();
        drop(client);
        let (lost, early) = ends.recv().await.unwrap();
        assert!(lost);
        assert_eq!(early[0], Message::binary(b"\0typed ahead".to_vec()));
    }
}
