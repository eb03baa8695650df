//! Runs a process in the machine with the caller's standard streams, terminal and signals.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, ErrorKind, Read, Write};
use std::thread;

use anyhow::{Context, bail};
use futures_util::stream::SplitStream;
use futures_util::{Sink, SinkExt, StreamExt};
use garret_api::agent::ExecRequest;
use garret_api::client::{Client, WebSocket};
use garret_api::one_line;
use garret_api::stream::{Control, FRAME_MAX, Outcome, STDERR, STDIN, STDIN_WINDOW, STDOUT, ServerMessage};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio_tungstenite::tungstenite::Message;

use super::terminal::{self, RawMode};

/// A shell's exit status for a command whose reader has exited: 128 and SIGPIPE.
const PIPE_CLOSED: u8 = 141;
/// The same for a command that was interrupted: 128 and SIGINT.
const INTERRUPTED: u8 = 130;
/// The most signals that wait to be sent; more than a person sends.
const SIGNALS_MAX: usize = 16;

/// Runs the process; returns its exit status. If it could not be started, prints the reason and returns a shell's
/// status for that.
///
/// # Errors
/// The connection was refused or lost.
pub(super) async fn run(client: &Client, path: &str, request: &ExecRequest) -> anyhow::Result<u8> {
    let (mut socket, granted) = client.exec_stream(path).await?;
    socket.send(text(request)).await.context("cannot send the request")?;
    let raw = if request.terminal.is_some() { Some(RawMode::enter()?) } else { None };
    let (to, from) = socket.split();
    let credit = Credit::new(granted);
    let signals = catch_signals()?;
    let outcome = tokio::select! {
        outcome = receive(from, &credit) => outcome,
        () = pump(to, read_input(), signals, &credit) => {
            drop(raw);
            eprintln!(
                "garret: the machine did not accept the signal; the connection was closed, and the command gets SIGHUP"
            );
            return Ok(INTERRUPTED);
        }
    };
    drop(raw);
    let Some(outcome) = outcome? else { return Ok(PIPE_CLOSED) };
    if let Outcome::Failed(problem) = &outcome {
        eprintln!("garret: {problem}");
    }
    Ok(outcome.status())
}

/// Prints the process's output until its outcome. Returns `None` when the reader of standard output or error has
/// exited.
async fn receive(mut from: SplitStream<WebSocket>, credit: &Credit) -> anyhow::Result<Option<Outcome>> {
    loop {
        match from.next().await {
            Some(Ok(Message::Binary(frame))) => {
                // A slow reader slows down the process; signals and input continue meanwhile.
                let written = tokio::task::spawn_blocking(move || write(&frame)).await?;
                match written {
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(None),
                    other => other.context("cannot write the command's output")?,
                }
            }
            Some(Ok(Message::Text(text))) => {
                match serde_json::from_str(&text).context("unexpected end of the command")? {
                    ServerMessage::Credit { credit: frames } => credit.grant(frames),
                    ServerMessage::Outcome(outcome) => return Ok(Some(outcome)),
                }
            }
            Some(Ok(Message::Close(Some(frame)))) if !frame.reason.is_empty() => {
                bail!("the stream ended: {}", one_line(&frame.reason))
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

/// Frames of standard input that may be sent.
struct Credit {
    /// Without grants (an older agent), there is no limit, but the agent reads no signal while the process takes no
    /// input.
    granted: bool,
    frames: Semaphore,
}

impl Credit {
    fn new(granted: bool) -> Self {
        let frames = if granted { STDIN_WINDOW as usize } else { Semaphore::MAX_PERMITS };
        Self { granted, frames: Semaphore::new(frames) }
    }

    /// However much the machine grants, the total never exceeds the window.
    fn grant(&self, frames: u32) {
        let room = (STDIN_WINDOW as usize).saturating_sub(self.frames.available_permits());
        self.frames.add_permits(room.min(frames as usize));
    }
}

/// Messages that wait to be sent, and the state of those that were sent.
struct Outgoing {
    /// Signals and window sizes.
    urgent: VecDeque<Message>,
    /// A frame of input, or its end.
    input: Option<Message>,
    /// The sink has messages that are not sent yet.
    unflushed: bool,
    /// One of these is a signal: it is sent before any other message.
    signaling: bool,
    /// The process may have stopped reading input; the agent then reads no signal.
    may_be_stuck: bool,
    /// An interrupt that may not have reached the process.
    interrupted: bool,
}

impl Outgoing {
    fn new() -> Self {
        Self {
            urgent: VecDeque::new(),
            input: None,
            unflushed: false,
            signaling: false,
            may_be_stuck: false,
            interrupted: false,
        }
    }

    /// Whether this is an interrupt, and the one before it may not have reached the process.
    fn is_second_interrupt(&mut self, control: &Control) -> bool {
        let interrupt = *control == Control::Signal(SignalKind::interrupt().as_raw_value());
        interrupt && std::mem::replace(&mut self.interrupted, true)
    }

    fn push_urgent(&mut self, control: &Control) {
        if self.urgent.len() < SIGNALS_MAX {
            self.urgent.push_back(text(control));
        }
    }

    fn is_sendable(&self) -> bool {
        !self.signaling && (!self.urgent.is_empty() || self.input.is_some())
    }

    /// The next message for the sink.
    fn next(&mut self, granted: bool) -> Option<Message> {
        self.signaling = !self.urgent.is_empty();
        let message = self.urgent.pop_front().or_else(|| self.input.take())?;
        self.may_be_stuck |= message.is_binary() && !granted;
        self.unflushed = true;
        Some(message)
    }

    /// All messages have been sent.
    fn flushed(&mut self) {
        (self.unflushed, self.signaling) = (false, false);
        self.interrupted &= self.may_be_stuck;
    }
}

/// Sends input, window size and signals. A signal does not wait for input, and is accepted while a frame cannot be
/// sent. Returns at a second interrupt if the first could not reach the process. If the connection is lost, it does not
/// return: the other direction reports how the command ended.
async fn pump<S: Sink<Message> + Unpin>(
    mut to: S,
    mut input: mpsc::Receiver<Vec<u8>>,
    mut signals: mpsc::Receiver<Control>,
    credit: &Credit,
) {
    let mut outgoing = Outgoing::new();
    let mut open = true;
    loop {
        tokio::select! {
            biased;
            Some(control) = signals.recv() => {
                if outgoing.is_second_interrupt(&control) {
                    return;
                }
                outgoing.push_urgent(&control);
            }
            sent = advance(&mut to, &mut outgoing, credit.granted), if outgoing.is_sendable() || outgoing.unflushed => {
                if sent.is_err() {
                    return std::future::pending().await;
                }
            }
            frame = next_frame(&mut input, credit), if open && outgoing.input.is_none() => {
                open = frame.is_some();
                outgoing.input = Some(frame.map_or_else(|| text(&Control::CloseStdin), Message::binary));
            }
        }
    }
}

/// Passes the next message to the sink, or waits until all earlier ones are sent. Cancel-safe.
async fn advance<S: Sink<Message> + Unpin>(to: &mut S, outgoing: &mut Outgoing, granted: bool) -> Result<(), S::Error> {
    if !outgoing.is_sendable() {
        poll_fn(|context| to.poll_flush_unpin(context)).await?;
        outgoing.flushed();
        return Ok(());
    }
    poll_fn(|context| to.poll_ready_unpin(context)).await?;
    outgoing.next(granted).map_or(Ok(()), |message| to.start_send_unpin(message))
}

/// The next frame of input that may be sent; `None` at the end of input. Cancel-safe.
async fn next_frame(input: &mut mpsc::Receiver<Vec<u8>>, credit: &Credit) -> Option<Vec<u8>> {
    // The semaphore is never closed.
    let permit = credit.frames.acquire().await.ok()?;
    let frame = input.recv().await?;
    permit.forget();
    Some(frame)
}

fn text(value: &impl serde::Serialize) -> Message {
    Message::text(serde_json::to_string(value).expect("requests and controls are plain data"))
}

/// Frames from standard input; the channel closes at its end. A thread of its own, because a read from a terminal
/// cannot be cancelled.
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

/// Receives signals from now on.
fn catch_signals() -> io::Result<mpsc::Receiver<Control>> {
    let mut signals = Signals::new()?;
    let (sender, receiver) = mpsc::channel(SIGNALS_MAX);
    tokio::spawn(async move { while sender.send(signals.next().await).await.is_ok() {} });
    Ok(receiver)
}

/// The signals that are passed on to the process.
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

#[cfg(test)]
mod tests;
