//! One thread serving one queue group: it owns the backend for good and the rings while the device runs.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use vmm_sys_util::eventfd::EventFd;

use super::fds::Wake;
use super::{Backend, ConfigInterrupt, Fault, Fds, Ring, Start};

pub(super) struct Worker<B> {
    pub name: String,
    pub backend: B,
    pub fds: Fds,
    pub starts: Receiver<Start>,
    /// Raised once per stop; a read of it blocks until then.
    pub stop: Arc<EventFd>,
    pub stopped: Sender<Vec<Ring>>,
    pub config_interrupt: ConfigInterrupt,
}

impl<B: Backend> Worker<B> {
    /// The thread's main loop: waits for rings, serves them until it must stop, and waits again. Ends with its device.
    pub(super) fn run(mut self) {
        while let Ok(mut start) = self.starts.recv() {
            self.serve(&mut start);
            if self.stopped.send(start.rings).is_err() {
                return;
            }
        }
    }

    fn serve(&mut self, start: &mut Start) {
        let served = self.serve_until_stopped(start);
        if let Err(fault) = &served {
            self.config_interrupt.fault(&self.name, fault);
            // Notifies host processes that wait for this device now, because the driver may never start again.
            let _ = catch_unwind(AssertUnwindSafe(|| self.backend.reset()));
            // The guest still owns the rings: only its reset or a pause takes them back. The read blocks until then.
            let _ = self.stop.read();
        }
        self.fds.clear();
        let finished = self.call(&mut start.rings, |backend, rings, _| {
            backend.stop(rings)?;
            match rings.iter().all(|ring| ring.in_flight() == 0) {
                true => Ok(()),
                false => Err(Fault::Bug("stop left chains in flight")),
            }
        });
        if let (Ok(()), Err(fault)) = (served, finished) {
            self.config_interrupt.fault(&self.name, &fault);
        }
    }

    fn serve_until_stopped(&mut self, start: &mut Start) -> Result<(), Fault> {
        let Start { features, ref mut rings, resumed } = *start;
        for (queue, ring) in rings.iter().enumerate().filter(|(_, ring)| ring.enabled()) {
            self.fds.add_kick(ring.kick_event(), queue)?;
        }
        self.call(rings, |backend, _, fds| {
            if !resumed {
                backend.reset();
            }
            backend.start(features, fds)
        })?;
        // Buffers may have been made available before the worker waited for kicks.
        for queue in 0..rings.len() {
            if rings[queue].enabled() {
                self.call(rings, |backend, rings, _| backend.kicked(queue, rings))?;
            }
        }
        loop {
            for wake in self.fds.wait()? {
                match wake {
                    Wake::Stop => {
                        self.stop.read()?;
                        return Ok(());
                    }
                    Wake::Kick(queue) => {
                        rings[queue].take_kicks()?;
                        self.call(rings, |backend, rings, _| backend.kicked(queue, rings))?;
                    }
                    Wake::Backend(token, events) => {
                        self.call(rings, |backend, rings, fds| backend.ready(token, events, rings, fds))?;
                    }
                }
            }
        }
    }

    /// Calls the backend, catches its panics, and signals the completions.
    fn call(
        &mut self,
        rings: &mut [Ring],
        work: impl FnOnce(&mut B, &mut [Ring], &mut Fds) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        for ring in &mut *rings {
            ring.refill();
        }
        // The backend may be left in an inconsistent state: `reset` repairs it, and only `stop` may be called before.
        catch_unwind(AssertUnwindSafe(|| work(&mut self.backend, rings, &mut self.fds)))
            .unwrap_or_else(|panic| Err(Fault::Panic(message(&*panic))))?;
        rings.iter_mut().try_for_each(Ring::signal)
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("no message").chars().take(200).collect()
}
