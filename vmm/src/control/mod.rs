//! What all threads send to the one that holds the machine's state (`driver`): an [`Event`], perhaps with a [`Command`].

mod admit;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use garret_api::vmm::{MachineDescription, MemoryInfo, MemoryTarget, Metrics};
use tokio::sync::oneshot;

pub(crate) use admit::{Refused, admit};

/// An event that may change the machine's state.
#[derive(Debug)]
pub(crate) enum Event {
    /// The guest powered itself off.
    PowerOff,
    /// The guest reset the machine.
    Reset,
    /// The guest's kernel reported through the panic device that it panicked.
    Panicked,
    /// The guest's kernel printed that it panicked; it may be about to reset.
    PanicPrinted,
    /// The machine cannot continue.
    Failed(String),
    /// SIGTERM or SIGINT.
    Terminate,
    /// A command of the API.
    Command(Command),
}

/// The destination of the response. It is no error if the requester no longer waits.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Refused>>;

/// A command of the API.
#[derive(Debug)]
pub(crate) enum Command {
    /// Return the machine's description.
    Describe(Reply<MachineDescription>),
    /// Pause the machine.
    Pause(Reply<()>),
    /// Resume the machine.
    Resume(Reply<()>),
    /// Press the power button.
    PowerButton(Reply<()>),
    /// Stop the machine.
    Shutdown(Reply<()>),
    /// Return the state of the memory that can be plugged.
    Memory(Reply<MemoryInfo>),
    /// Set how much of that memory the guest may plug.
    SetMemory(MemoryTarget, Reply<MemoryInfo>),
    /// Return the counters.
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
pub(crate) struct Events {
    sender: mpsc::Sender<Event>,
    ended: Arc<AtomicBool>,
}

impl Events {
    pub(crate) fn channel() -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel();
        (Self { sender, ended: Arc::default() }, receiver)
    }

    /// Sends an event. A machine ends only once: a guest can request the end any number of times before its vCPUs stop,
    /// but only the first request is queued. After the machine's end no thread receives events, and they are dropped.
    pub(crate) fn send(&self, event: Event) {
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
