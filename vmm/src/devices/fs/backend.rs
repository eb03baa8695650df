//! The backend of virtio-fs. It serves one request queue; the first instance also serves the high-priority queue
//! (virtio 1.2 §5.11.2).

use std::io;
use std::sync::Arc;

use super::pool::{Completions, Job, Pool, unshare_umask};
use super::request::{Dispatch, Message};
use super::share_server::ShareServer;
use crate::virtio::{Backend, EventOps, EventSet, Events, Fault, RawTable, Ring};

/// Serves quick requests itself, and passes the others to the pool.
pub(crate) struct FsBackend {
    server: Arc<ShareServer>,
    pool: Arc<Pool>,
    completions: Arc<Completions>,
    table: RawTable,
    in_flight: usize,
}

impl FsBackend {
    pub(super) fn new(server: Arc<ShareServer>, pool: Arc<Pool>) -> io::Result<Self> {
        Ok(Self { server, pool, completions: Arc::new(Completions::new()?), table: RawTable::new()?, in_flight: 0 })
    }

    fn complete(&mut self, rings: &mut [Ring]) -> Result<(), Fault> {
        let mut result = Ok(());
        for answer in self.completions.wait()? {
            self.in_flight -= 1;
            // Takes all answers, also after a fault, because no later call returns the others.
            let completed = answer.result.and_then(|written| match rings.get_mut(answer.ring) {
                Some(ring) => ring.complete(answer.head, written),
                None => Err(Fault::Bug("an answer came back to a ring that is not there")),
            });
            result = result.and(completed);
        }
        result
    }
}

impl Backend for FsBackend {
    fn prepare(&mut self) -> io::Result<()> {
        unshare_umask()
    }

    fn reset(&mut self) {
        if let Err(error) = self.server.reset() {
            tracing::warn!("the file server could not be restarted: {error}");
        }
    }

    fn start(&mut self, _features: u64, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        self.server.started();
        Ok(ops.add(Events::new(self.completions.event(), EventSet::IN))?)
    }

    fn kicked(&mut self, queue: usize, rings: &mut [Ring]) -> Result<(), Fault> {
        let ring = &mut rings[queue];
        while let Some(chain) = ring.take()? {
            let message = Message::admit(&chain)?;
            if message.is_init() {
                self.server.renew()?;
            }
            let dispatch = message.dispatch();
            if dispatch == Dispatch::Inline || (dispatch == Dispatch::InlineIfAlone && !ring.has_more()?) {
                let written = self.server.serve(&message, &chain, &mut self.table)?;
                ring.complete(chain.head(), written)?;
            } else {
                self.in_flight += 1;
                self.pool.submit(Job { message, chain, ring: queue, completions: self.completions.clone() });
            }
        }
        Ok(())
    }

    fn ready(&mut self, _: Events, rings: &mut [Ring]) -> Result<(), Fault> {
        self.complete(rings)
    }

    /// Waits for the pool. The wait may take as long as the host's disk does; the transport sets the deadline.
    fn stop(&mut self, rings: &mut [Ring]) -> Result<(), Fault> {
        self.server.stopped();
        let mut result = Ok(());
        while self.in_flight > 0 {
            result = result.and(self.complete(rings));
        }
        result
    }
}
