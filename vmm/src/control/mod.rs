//! The machine's state and the one thread that writes it. Everybody else sends it an [`Event`].

mod admit;
mod driver;
mod lease;

use std::sync::mpsc;

use garret_api::vmm::{BalloonInfo, BalloonTarget, MachineInfo, MemoryInfo, MemoryTarget, Metrics};
use tokio::sync::oneshot;

pub use admit::{Refused, admit};
pub use driver::drive;

/// What happens to a machine.
#[derive(Debug)]
pub enum Event {
    /// The guest switched itself off.
    PowerOff,
    /// The guest wants to start again.
    Reset,
    /// The guest's kernel told us that it panicked.
    Panicked,
    /// The guest's kernel printed that it panicked; it may be about to reset.
    PanicPrinted,
    /// The machine cannot go on.
    Failed(String),
    /// SIGTERM or SIGINT.
    Terminate,
    /// The API wants something.
    Command(Command),
}

/// Where an answer goes. It does not matter if nobody waits any more.
pub type Reply<T> = oneshot::Sender<Result<T, Refused>>;

/// What the API can ask for.
#[derive(Debug)]
pub enum Command {
    /// What it is and does.
    Describe(Reply<MachineInfo>),
    /// Stand still.
    Pause(Reply<()>),
    /// Go on.
    Resume(Reply<()>),
    /// End.
    Shutdown(Reply<()>),
    /// How the balloon stands.
    Balloon(Reply<BalloonInfo>),
    /// How large it shall be.
    SetBalloon(BalloonTarget, Reply<BalloonInfo>),
    /// How memory stands that can be plugged.
    Memory(Reply<MemoryInfo>),
    /// How much of it the guest shall have.
    SetMemory(MemoryTarget, Reply<MemoryInfo>),
    /// The counters.
    Metrics(Reply<Metrics>),
}

/// The sending end; cheap to clone.
#[derive(Clone, Debug)]
pub struct Events(mpsc::Sender<Event>);

impl Events {
    /// Both ends.
    pub fn channel() -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel();
        (Self(sender), receiver)
    }

    /// Sends. After the machine's end nobody listens, and nothing is lost by that.
    pub fn send(&self, event: Event) {
        let _ = self.0.send(event);
    }
}
