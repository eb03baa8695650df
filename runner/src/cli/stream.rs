//! A process in the machine with the caller's standard streams, terminal and signals.

use std::io::{self, ErrorKind, Read, Write};
use std::thread;

use anyhow::{Context, bail};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use garret_api::agent::ExecRequest;
use garret_api::client::{Client, WebSocket};
use garret_api::stream::{Control, FRAME_MAX, Outcome, STDERR, STDIN, STDOUT};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::terminal::{self, RawMode};

/// What a shell shows for a command whose reader went away: 128 and SIGPIPE.
const PIPE_CLOSED: u8 = 141;

/// Runs the process; gives its exit status. One that could not be started is told in a line and has a shell's status for that.
///
/// # Errors
/// The connection was refused or lost.
pub async fn run(client: &Client, path: &str, request: &ExecRequest) -> anyhow::Result<u8> {
    let mut socket = client.websocket(path).await?;
    socket.send(text(request)?).await.context("cannot send the request")?;
    let raw = if request.terminal.is_some() { Some(RawMode::enter()?) } else { None };
    let (to, from) = socket.split();
    let outcome = tokio::select! {
        outcome = receive(from) => outcome,
        error = send(to) => Err(error),
    };
    drop(raw);
    let Some(outcome) = outcome? else { return Ok(PIPE_CLOSED) };
    if let Outcome::Failed(problem) = &outcome {
        eprintln!("garret: {problem}");
    }
    Ok(outcome.status())
}

/// What the process prints, until its outcome; none if nobody reads any more.
async fn receive(mut from: SplitStream<WebSocket>) -> anyhow::Result<Option<Outcome>> {
    loop {
        match from.next().await {
            Some(Ok(Message::Binary(frame))) => {
                // A reader that is slow makes the process slow; signals and input go on meanwhile.
                let written = tokio::task::spawn_blocking(move || write(&frame)).await?;
                match written {
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(None),
                    other => other.context("cannot write the command's output")?,
                }
            }
            Some(Ok(Message::Text(outcome))) => {
                return serde_json::from_str(&outcome).map(Some).context("unexpected end of the command");
            }
            Some(Ok(Message::Close(_))) | None => bail!("the connection to the machine was lost"),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error).context("the connection to the machine was lost"),
        }
    }
}

fn write(frame: &[u8]) -> io::Result<()> {
    let Some((channel, data)) = frame.split_first() else { return Ok(()) };
    match *channel {
        STDOUT => write_all(io::stdout().lock(), data),
        STDERR => write_all(io::stderr().lock(), data),
        _ => Ok(()),
    }
}

fn write_all(mut to: impl Write, data: &[u8]) -> io::Result<()> {
    to.write_all(data)?;
    to.flush()
}

/// Input, window size and signals, until the connection is lost.
async fn send(mut to: SplitSink<WebSocket, Message>) -> anyhow::Error {
    match pump(&mut to).await {
        Ok(()) => std::future::pending().await,
        Err(error) => error,
    }
}

async fn pump(to: &mut SplitSink<WebSocket, Message>) -> anyhow::Result<()> {
    let mut input = read_input();
    let mut signals = Signals::new()?;
    let mut open = true;
    loop {
        let message = tokio::select! {
            chunk = input.recv(), if open => match chunk {
                Some(frame) => Message::binary(frame),
                None => {
                    open = false;
                    text(&Control::CloseStdin)?
                }
            },
            control = signals.next() => text(&control)?,
        };
        if to.send(message).await.is_err() {
            // The process has ended while something was on its way to it: its outcome tells.
            return Ok(());
        }
    }
}

fn text(value: &impl serde::Serialize) -> anyhow::Result<Message> {
    Ok(Message::text(serde_json::to_string(value)?))
}

/// Frames from standard input; closed at its end. A thread of its own, for reading a terminal cannot be given up.
fn read_input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(4);
    thread::spawn(move || {
        let mut buffer = vec![STDIN; FRAME_MAX];
        loop {
            match io::stdin().lock().read(&mut buffer[1..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    if sender.blocking_send(buffer[..=length].to_vec()).is_err() {
                        return;
                    }
                }
            }
        }
    });
    receiver
}

/// The signals that are passed on.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
    user1: Signal,
    user2: Signal,
    window: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            window: signal(SignalKind::window_change())?,
        })
    }

    async fn next(&mut self) -> Control {
        loop {
            let kind = tokio::select! {
                _ = self.interrupt.recv() => SignalKind::interrupt(),
                _ = self.terminate.recv() => SignalKind::terminate(),
                _ = self.hangup.recv() => SignalKind::hangup(),
                _ = self.quit.recv() => SignalKind::quit(),
                _ = self.user1.recv() => SignalKind::user_defined1(),
                _ = self.user2.recv() => SignalKind::user_defined2(),
                _ = self.window.recv() => match terminal::size() {
                    Some(size) => return Control::Resize(size),
                    None => continue,
                },
            };
            return Control::Signal(kind.as_raw_value());
        }
    }
}
