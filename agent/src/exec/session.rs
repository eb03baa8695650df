//! One WebSocket, one process: the protocol of [`garret_api::stream`].
//!
//! Every buffer is bounded: a client that reads slowly stops the process's output, a process that reads slowly stops the
//! client's input once [`STDIN_FRAMES`] frames wait. The socket is pinged, so that a lost client is noticed even then.

use std::io;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use garret_api::Problem;
use garret_api::agent::ExecRequest;
use garret_api::stream::{Control, FRAME_MAX, Outcome, STDIN};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

use super::running::{Handle, Running};
use super::{Place, ProcessSpec, container, spawn};

/// Frames of output that wait for the client.
const OUTPUT_FRAMES: usize = 4;
/// Frames of input that wait for the process.
const STDIN_FRAMES: usize = 16;
/// How long the first frame may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// After the process's end: how long its streams may be silent, yet open in other processes' hands, before it is over.
const LINGER: Duration = Duration::from_millis(200);
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// A terminal's end-of-file character.
const EOT: u8 = 4;

/// The connection to the client is gone.
struct Lost;

/// What is to be written to the process.
enum Input {
    Data(axum::body::Bytes),
    End,
}

/// Reads the request, starts what `prepare` makes of it, and relays until the process or the connection ends.
pub async fn serve<P, F>(mut socket: WebSocket, prepare: P)
where
    P: FnOnce(ExecRequest) -> F,
    F: Future<Output = Result<ProcessSpec, Problem>>,
{
    let started = async {
        let request = first_frame(&mut socket).await?;
        let spec = prepare(request).await?;
        match &spec.place {
            Place::Guest => spawn::spawn(&spec),
            Place::Container { id } => container::spawn(id, &spec).await,
        }
    };
    let outcome = match started.await {
        Ok(running) => match relay(socket, running).await {
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
        socket.send(Message::Close(None)).await.ok();
        // Wait for the client's close: were the connection dropped at once, the last frames could be lost with it.
        tokio::time::timeout(REQUEST_TIMEOUT, async { while let Some(Ok(_)) = socket.recv().await {} }).await.ok();
    }
}

async fn first_frame(socket: &mut WebSocket) -> Result<ExecRequest, Problem> {
    let invalid = |what: String| Problem::new("invalid", what);
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

/// Relays until the process has ended and all it said is with the client. A lost client hangs the process up.
async fn relay(socket: WebSocket, running: Running) -> Result<(WebSocket, Outcome), Lost> {
    let Running { stdin, outputs, handle, mut child } = running;
    let (mut sink, mut source) = socket.split();
    let (frames, queued) = mpsc::channel(OUTPUT_FRAMES);
    let (input, waiting) = mpsc::channel(STDIN_FRAMES);
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
    let result = tokio::select! {
        result = async { tokio::try_join!(speaking, send_frames(&mut sink, queued)) } => result.map(|(outcome, ())| outcome),
        lost = receive_frames(&mut source, &handle, input) => Err(lost),
        never = feed_stdin(stdin, waiting, terminal) => match never {},
    };
    match result {
        Ok(outcome) => Ok((sink.reunite(source).map_err(|_| Lost)?, outcome)),
        Err(Lost) => {
            // Once it has been reaped, its number may be somebody else's.
            if !*has_ended.borrow() {
                handle.hang_up();
            }
            drop(handle);
            // What ignores SIGHUP lives on, as under any terminal; it is still reaped.
            tokio::spawn(async move { child.wait().await });
            Err(Lost)
        }
    }
}

/// From one of the process's streams to the queue of frames, until its end; after the process's end no longer than it
/// goes on speaking.
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
            ended.wait_for(|ended| *ended).await.ok();
            tokio::time::sleep(LINGER).await;
        };
        let read = tokio::select! {
            biased;
            read = output.read(&mut buffer[1..]) => read,
            () = lingering => return,
        };
        match read {
            // A terminal nobody holds any more reads as EIO.
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
) -> Result<(), Lost> {
    let mut ping = tokio::time::interval(PING_INTERVAL);
    ping.tick().await;
    loop {
        let frame = tokio::select! {
            frame = queued.recv() => frame,
            _ = ping.tick() => Some(Message::Ping(Default::default())),
        };
        match frame {
            Some(frame) => sink.send(frame).await.map_err(|_| Lost)?,
            None => return Ok(()),
        }
    }
}

async fn receive_frames(source: &mut SplitStream<WebSocket>, handle: &Handle, input: mpsc::Sender<Input>) -> Lost {
    loop {
        match source.next().await {
            Some(Ok(Message::Binary(data))) if data.first() == Some(&STDIN) => {
                if data.len() > 1 && input.send(Input::Data(data.slice(1..))).await.is_err() {
                    return Lost;
                }
            }
            Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                Ok(Control::Resize(size)) => handle.resize(size),
                Ok(Control::Signal(number)) => {
                    if let Err(problem) = handle.signal(number) {
                        tracing::warn!("{problem}");
                    }
                }
                Ok(Control::CloseStdin) => {
                    if input.send(Input::End).await.is_err() {
                        return Lost;
                    }
                }
                Err(error) => tracing::warn!("a control frame is not valid: {error}"),
            },
            Some(Ok(Message::Binary(_))) => tracing::warn!("a binary frame of the client is not standard input"),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_)) | Err(_)) | None => return Lost,
        }
    }
}

/// To the process's standard input. A process that does not read it is no error: the rest is dropped.
async fn feed_stdin(
    stdin: pipe::Sender,
    mut waiting: mpsc::Receiver<Input>,
    terminal: bool,
) -> std::convert::Infallible {
    let mut stdin = Some(stdin);
    while let Some(input) = waiting.recv().await {
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
    }
    std::future::pending().await
}
