//! One thread serving one queue group: it owns the backend for good and the rings while the device runs.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use event_manager::{EventManager, SubscriberId, SubscriberOps};
use vmm_sys_util::eventfd::EventFd;

use super::session::Session;
use super::{Backend, ConfigInterrupt, Fault, Ring, Start};

/// The most events taken from the kernel at once.
pub(super) const EVENTS_MAX: usize = 16;

pub(super) struct Worker<B> {
    pub name: String,
    /// Has one subscriber while the device runs, and none otherwise.
    pub events: EventManager<Session<B>>,
    pub starts: Receiver<Start>,
    /// Raised once per stop; a read of it blocks until then.
    pub stop: Arc<EventFd>,
    pub stopped: Sender<Vec<Ring>>,
    pub config_interrupt: ConfigInterrupt,
}

impl<B: Backend> Worker<B> {
    /// The thread's main loop: waits for rings, serves them until it must stop, and waits again. Ends with its device.
    pub(super) fn run(mut self, mut backend: B) {
        while let Ok(start) = self.starts.recv() {
            let session = self.serve(Session::new(backend, start, self.stop.clone()));
            if self.stopped.send(session.rings).is_err() {
                return;
            }
            backend = session.backend;
        }
    }

    /// Returns the session when it has stopped.
    fn serve(&mut self, session: Session<B>) -> Session<B> {
        let id = self.events.add_subscriber(session);
        let ended = self.run_until_ended(id);
        let mut session = self.events.remove_subscriber(id).expect("only this line removes the session");
        if let Err(fault) = &ended {
            self.config_interrupt.fault(&self.name, fault);
            // Notifies host processes that wait for this device now, because the driver may never start again.
            session.reset();
            // The guest still owns the rings: only its reset or a pause takes them back. The read blocks until then.
            let _ = self.stop.read();
        }
        if let (Ok(()), Err(fault)) = (ended, session.finish()) {
            self.config_interrupt.fault(&self.name, &fault);
        }
        session
    }

    fn run_until_ended(&mut self, id: SubscriberId) -> Result<(), Fault> {
        loop {
            if let Some(ended) = self.events.subscriber_mut(id)?.ended.take() {
                return ended;
            }
            self.events.run()?;
        }
    }
}
