//! The machine's state and the one thread that writes it. Everybody else sends it an [`Event`].

mod admit;
mod driver;
mod lease;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

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
    /// The machine cannot continue.
    Failed(String),
    /// SIGTERM or SIGINT.
    Terminate,
    /// The API wants something.
    Command(Command),
}

/// Where an answer goes. It does not matter if the requester waits no more.
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
    /// Press the power button.
    PowerButton(Reply<()>),
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

impl Event {
    fn is_end(&self) -> bool {
        match self {
            Self::PowerOff | Self::Reset | Self::Panicked | Self::Failed(_) | Self::Terminate => true,
            Self::PanicPrinted | Self::Command(_) => false,
        }
    }
}

/// The sending end; cheap to clone.
#[derive(Clone, Debug)]
pub struct Events {
    sender: mpsc::Sender<Event>,
    ended: Arc<AtomicBool>,
}

impl Events {
    /// Both ends.
    pub fn channel() -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel();
        (Self { sender, ended: Arc::default() }, receiver)
    }

    /// Sends. A machine ends once: a guest can ask for the end any number of times before its vCPUs stop, and only the first
    /// is queued. After the machine's end no thread receives, and nothing is lost by that.
    pub fn send(&self, event: Event) {
        if event.is_end() && self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        let _ = self.sender.send(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_end_is_queued() {
        let (events, queue) = Events::channel();
        events.send(Event::PanicPrinted);
        for _ in 0..3 {
            events.clone().send(Event::Reset);
            events.send(Event::PowerOff);
        }
        events.send(Event::Command(Command::Shutdown(oneshot::channel().0)));
        drop(events);
        let queued: Vec<_> = queue.into_iter().collect();
        assert!(matches!(queued[..], [Event::PanicPrinted, Event::Reset, Event::Command(_)]), "{queued:?}");
    }
}
