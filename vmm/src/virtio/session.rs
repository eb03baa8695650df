//! One run of a device, from its start to its stop: the backend and its rings, as a subscriber of the worker's event
//! manager.

use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use super::{Backend, Fault, Ring, Start};

/// Moved into the event manager at the start, and taken out of it with its rings at the stop. That also registers and
/// removes the descriptors: of the stop, of the kicks, and of the backend. The event manager identifies each by its
/// number, so the data of an event belongs to the backend alone.
pub(super) struct Session<B> {
    pub backend: B,
    pub rings: Vec<Ring>,
    features: u64,
    resumed: bool,
    stop: Arc<EventFd>,
    /// How it ended: by a stop, or by a fault. `None` while it runs.
    pub ended: Option<Result<(), Fault>>,
}

impl<B: Backend> Session<B> {
    /// `stop` is raised once, to end the session.
    pub(super) fn new(backend: B, Start { features, rings, resumed }: Start, stop: Arc<EventFd>) -> Self {
        Self { backend, rings, features, resumed, stop, ended: None }
    }

    /// Drops what the backend keeps for its driver.
    pub(super) fn reset(&mut self) {
        let _ = catch_unwind(AssertUnwindSafe(|| self.backend.reset()));
    }

    /// Finishes the requests in flight.
    pub(super) fn finish(&mut self) -> Result<(), Fault> {
        self.call(|backend, rings| {
            backend.stop(rings)?;
            match rings.iter().all(|ring| ring.in_flight() == 0) {
                true => Ok(()),
                false => Err(Fault::Bug("stop left chains in flight")),
            }
        })
    }

    fn begin(&mut self, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        ops.add(Events::new(&*self.stop, EventSet::IN))?;
        for ring in self.rings.iter().filter(|ring| ring.enabled()) {
            ops.add(Events::new(ring.kick_event(), EventSet::IN))?;
        }
        let (features, resumed) = (self.features, self.resumed);
        self.call(|backend, _| {
            if !resumed {
                backend.reset();
            }
            backend.start(features, ops)
        })?;
        // Buffers may have been made available before the worker waited for kicks.
        for queue in 0..self.rings.len() {
            if self.rings[queue].enabled() {
                self.call(|backend, rings| backend.kicked(queue, rings))?;
            }
        }
        Ok(())
    }

    fn handle(&mut self, events: Events) -> Result<(), Fault> {
        let is_kick = |ring: &Ring| ring.kick_event().as_raw_fd() == events.fd();
        match self.rings.iter().position(is_kick) {
            Some(queue) => {
                self.rings[queue].take_kicks()?;
                self.call(|backend, rings| backend.kicked(queue, rings))
            }
            None => self.call(|backend, rings| backend.ready(events, rings)),
        }
    }

    /// Calls the backend, catches its panics, and signals the completions.
    fn call(&mut self, work: impl FnOnce(&mut B, &mut [Ring]) -> Result<(), Fault>) -> Result<(), Fault> {
        self.rings.iter_mut().for_each(Ring::refill);
        // The backend may be left in an inconsistent state: `reset` repairs it, and only `stop` may be called before.
        catch_unwind(AssertUnwindSafe(|| work(&mut self.backend, &mut self.rings)))
            .unwrap_or_else(|panic| Err(Fault::of_panic(&*panic)))?;
        self.rings.iter_mut().try_for_each(Ring::signal)
    }
}

impl<B: Backend> MutEventSubscriber for Session<B> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(fault) = self.begin(ops) {
            self.ended = Some(Err(fault));
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        if self.ended.is_some() {
            // The rest of the batch with the event that ended the session.
        } else if events.fd() == self.stop.as_raw_fd() {
            self.ended = Some(self.stop.read().map(|_| ()).map_err(Fault::from));
        } else if let Err(fault) = self.handle(events) {
            self.ended = Some(Err(fault));
        }
    }
}
