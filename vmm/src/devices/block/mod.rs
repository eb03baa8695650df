//! virtio-blk over a raw file (§5.2).
//!
//! [`request`] checks a request and turns it into a [`job::Job`]. io_uring carries it out, or the worker's thread if
//! the host has no io_uring. Discarded ranges are punched out of the file, so the image shrinks with its contents.
//!
//! The image is sparse, so the host can run out of space for it. A write that finds no space waits and is retried: an
//! error would make the guest's file system fail, and with it everything in the machine. A flush is not retried: the
//! host reports a failed flush once and may have dropped the data, so that the next flush would succeed.

mod config;
mod failures;
mod flush_queue;
mod image;
mod job;
mod outcome;
mod request;
mod uring;

#[cfg(test)]
pub(crate) mod tests;

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use garret_api::vmm::DiskConfig;
use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use zerocopy::FromBytes;

use self::config::BlockConfig;
use self::failures::Failures;
use self::flush_queue::FlushQueue;
use self::image::{Image, ImageError};
use self::job::Job;
use self::outcome::{Outcome, OutcomePolicy};
use self::request::{Action, Header, ID_LEN, Range, Shape, Status, validate};
use self::uring::Uring;
use crate::rate_limit::RateLimiter;
use crate::seccomp::Role;
use crate::timer::Timer;
use crate::virtio::{self, Backend, Chain, Device, EventOps, EventSet, Events, Fault, Identity, Ring};

/// The most requests that a driver can have in flight.
const QUEUE_SIZE: u16 = 256;

/// What an event means: its data.
const COMPLETED: u32 = 0;
const TOKENS_FLOWED: u32 = 1;
const RETRY: u32 = 2;

/// The pause before requests that found no space on the host are retried.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Why a disk could not be created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("disk {id}: cannot make a timer: {source}")]
    Timer {
        /// The disk.
        id: String,
        /// The host's error.
        source: io::Error,
    },
    #[error(transparent)]
    Device(#[from] virtio::BuildError),
}

/// The disk `/dev/vd<a + index>`.
pub(crate) fn new(index: usize, config: &DiskConfig) -> Result<Device, Error> {
    let backend = BlockBackend::new(config)?;
    let identity = Identity {
        name: format!("block{index}"),
        device_type: VIRTIO_ID_BLOCK,
        features: backend.features(),
        queue_sizes: vec![QUEUE_SIZE],
        config: backend.config.clone(),
    };
    Ok(Device::new(identity, vec![(backend, 0..1)], Role::Block)?)
}

/// The device's worker part.
struct BlockBackend {
    id: String,
    image: Image,
    config: Arc<BlockConfig>,
    limiter: RateLimiter,
    /// `None` if the host does not allow io_uring: then requests are carried out on the worker's thread.
    uring: Option<Uring>,
    /// Writes for which the host had no space.
    waiting: Vec<Job>,
    /// The number of unanswered requests that found no space at least once, including those that are being retried.
    short_of_space: usize,
    flushes: FlushQueue<Job>,
    outcome_policy: OutcomePolicy,
    retry: Timer,
    negotiated: u64,
    failures: Failures,
}

impl BlockBackend {
    fn new(config: &DiskConfig) -> Result<Self, Error> {
        let image = Image::open(config)?;
        let timer = |source| Error::Timer { id: config.id.clone(), source };
        let limiter = RateLimiter::new(config.rate_limit).map_err(timer)?;
        let retry = Timer::new().map_err(timer)?;
        let space = Arc::new(BlockConfig::new(image.disk));
        let (id, waiting, failures) = (config.id.clone(), Vec::new(), Failures::default());
        let flushes = FlushQueue::default();
        let (uring, short_of_space, negotiated, outcome_policy) = (None, 0, 0, OutcomePolicy::default());
        Ok(Self {
            id,
            image,
            config: space,
            limiter,
            uring,
            waiting,
            short_of_space,
            flushes,
            outcome_policy,
            retry,
            negotiated,
            failures,
        })
    }

    fn features(&self) -> u64 {
        let mut bits = vec![
            blk::VIRTIO_BLK_F_SIZE_MAX,
            blk::VIRTIO_BLK_F_SEG_MAX,
            blk::VIRTIO_BLK_F_BLK_SIZE,
            blk::VIRTIO_BLK_F_TOPOLOGY,
            blk::VIRTIO_BLK_F_FLUSH,
            blk::VIRTIO_BLK_F_CONFIG_WCE,
        ];
        if self.image.disk.read_only {
            bits.push(blk::VIRTIO_BLK_F_RO);
        }
        if self.image.disk.discard {
            bits.extend([blk::VIRTIO_BLK_F_DISCARD, blk::VIRTIO_BLK_F_WRITE_ZEROES]);
        }
        bits.into_iter().fold(0, |features, bit| features | 1 << bit)
    }

    /// §5.2.6.2: without FLUSH, or with the cache off, a write is acknowledged when it is durable.
    fn writethrough(&self) -> bool {
        let has = |bit: u32| self.negotiated & (1 << bit) != 0;
        !has(blk::VIRTIO_BLK_F_FLUSH) || (has(blk::VIRTIO_BLK_F_CONFIG_WCE) && !self.config.writeback())
    }

    /// Takes requests until there are none, or until the rate limit is reached.
    fn serve(&mut self, ring: &mut Ring) -> Result<(), Fault> {
        while !self.limiter.blocked() {
            let Some(chain) = ring.take()? else { break };
            self.accept(chain, ring)?;
        }
        self.submit(ring)
    }

    /// Submits the queued requests, and answers those that the kernel completed at once. A completed write may be
    /// followed by its flush.
    fn submit(&mut self, ring: &mut Ring) -> Result<(), Fault> {
        loop {
            let Some(uring) = &mut self.uring else { return Ok(()) };
            if !uring.submit()? {
                return Ok(());
            }
            self.reap(ring)?;
        }
    }

    fn accept(&mut self, chain: Chain, ring: &mut Ring) -> Result<(), Fault> {
        let (header, shape) = dissect(&chain)?;
        let action = validate(header, shape, self.image.disk);
        self.limiter.charge(action.map_or(0, |action| action.bytes()));
        match action {
            Err(status) => answer(&chain, status, ring),
            Ok(Action::Identify) => self.identify(&chain, ring),
            Ok(action) => {
                let durable = action.writes() && self.writethrough();
                self.begin(Job { chain, action, durable, found_no_space: false }, ring)
            }
        }
    }

    fn begin(&mut self, job: Job, ring: &mut Ring) -> Result<(), Fault> {
        let job = if job.action == Action::Flush { self.flushes.begin(job) } else { Some(job) };
        job.map_or(Ok(()), |job| self.execute(job, ring))
    }

    fn execute(&mut self, job: Job, ring: &mut Ring) -> Result<(), Fault> {
        if let Some(uring) = &mut self.uring {
            return uring.push(job);
        }
        let result = job.run(&self.image.file, 0);
        self.finish(job, result, ring)
    }

    /// Answers a job, turns it into the flush that it still needs, or lets it wait for space.
    fn finish(&mut self, mut job: Job, result: io::Result<()>, ring: &mut Ring) -> Result<(), Fault> {
        let outcome = self.outcome_policy.decide(job.action, job.durable, &result);
        if let Err(error) = result {
            ring.host_failed();
            self.warn(outcome, &error);
        }
        match outcome {
            Outcome::Answer(status) => {
                self.answer_job(&job, status, ring)?;
                if job.action == Action::Flush { self.end_flush(status, ring) } else { Ok(()) }
            }
            Outcome::Flush => {
                job.durable = false;
                job.action = Action::Flush;
                self.begin(job, ring)
            }
            Outcome::Wait => self.wait_for_space(job, ring),
        }
    }

    fn answer_job(&mut self, job: &Job, status: Status, ring: &mut Ring) -> Result<(), Fault> {
        if job.found_no_space {
            self.short_of_space -= 1;
            ring.set_short_of_space(self.short_of_space);
        }
        answer(&job.chain, status, ring)
    }

    /// Answers the flushes that the completed flush covered, and begins the next one.
    fn end_flush(&mut self, status: Status, ring: &mut Ring) -> Result<(), Fault> {
        let (covered, next) = self.flushes.end();
        for job in covered {
            self.answer_job(&job, status, ring)?;
        }
        next.map_or(Ok(()), |flush| self.execute(flush, ring))
    }

    fn warn(&mut self, outcome: Outcome, error: &io::Error) {
        if self.failures.note(Instant::now()) {
            let waits = outcome == Outcome::Wait;
            let consequence = if waits { "it waits for space" } else { "an I/O error for the guest" };
            tracing::warn!(disk = self.id, "the host fails a request, {consequence}: {error}");
        }
    }

    fn wait_for_space(&mut self, mut job: Job, ring: &Ring) -> Result<(), Fault> {
        if self.waiting.is_empty() {
            self.retry.set(RETRY_PAUSE, Duration::ZERO)?;
        }
        if !job.found_no_space {
            job.found_no_space = true;
            self.short_of_space += 1;
            ring.set_short_of_space(self.short_of_space);
        }
        self.waiting.push(job);
        Ok(())
    }

    /// Retries the waiting writes. One attempt has few of them (a queue has 256), and a retry that fails loses no data.
    fn retry_waiting(&mut self, ring: &mut Ring) -> Result<(), Fault> {
        self.retry.clear();
        std::mem::take(&mut self.waiting).into_iter().try_for_each(|job| self.begin(job, ring))
    }

    fn identify(&self, chain: &Chain, ring: &mut Ring) -> Result<(), Fault> {
        let mut id = [0; ID_LEN];
        let used = self.id.len().min(ID_LEN);
        id[..used].copy_from_slice(&self.id.as_bytes()[..used]);
        chain.writer().write_all(&id)?;
        answer(chain, Status::Ok, ring)
    }

    /// Answers the requests that the kernel has completed.
    fn reap(&mut self, ring: &mut Ring) -> Result<(), Fault> {
        while let Some((job, result)) = self.uring.as_mut().and_then(Uring::next_completed) {
            let result = match result {
                // The rest of a short transfer, and actions that only plain system calls support, run on this thread:
                // both are rare.
                Ok(done) => job.run_rest(&self.image.file, done),
                Err(error) if is_retryable(&error) => job.run(&self.image.file, 0),
                Err(error) => Err(error),
            };
            self.finish(job, result, ring)?;
        }
        Ok(())
    }
}

fn is_retryable(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR | libc::EOPNOTSUPP | libc::ECANCELED))
}

impl Backend for BlockBackend {
    /// Runs on the worker's thread, because the limit of kernel threads applies to the thread that submits.
    fn prepare(&mut self) -> io::Result<()> {
        match Uring::new(&self.image.file, QUEUE_SIZE) {
            Ok(uring) => self.uring = Some(uring),
            Err(error) => tracing::info!(
                disk = self.id,
                "io_uring is not available; requests run on the worker's thread: {error}"
            ),
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.outcome_policy = OutcomePolicy::default();
    }

    fn start(&mut self, features: u64, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        self.negotiated = features;
        // A fault may have left flushes, and nothing is in flight now.
        self.flushes = FlushQueue::default();
        if let Some(uring) = &self.uring {
            ops.add(Events::with_data(uring, COMPLETED, EventSet::IN))?;
        }
        ops.add(Events::with_data(&self.limiter, TOKENS_FLOWED, EventSet::IN))?;
        ops.add(Events::with_data(&self.retry, RETRY, EventSet::IN))?;
        Ok(())
    }

    fn kicked(&mut self, _queue: usize, rings: &mut [Ring]) -> Result<(), Fault> {
        self.serve(&mut rings[0])
    }

    fn ready(&mut self, events: Events, rings: &mut [Ring]) -> Result<(), Fault> {
        match events.data() {
            TOKENS_FLOWED => self.limiter.elapsed(),
            RETRY => self.retry_waiting(&mut rings[0])?,
            _ => {
                // Clear the event before taking completions: a completion that arrives in between raises the event
                // again.
                if let Some(uring) = &mut self.uring {
                    uring.acknowledge();
                }
                self.reap(&mut rings[0])?;
            }
        }
        // This also submits the flushes that follow completed writes.
        self.serve(&mut rings[0])
    }

    fn stop(&mut self, rings: &mut [Ring]) -> Result<(), Fault> {
        let mut result = Ok(());
        // Finish all requests, whatever the state of the ring: a request left over would be mistaken for one of the
        // next driver.
        loop {
            while let Some(uring) = self.uring.as_mut().filter(|uring| uring.in_flight() > 0) {
                let waited = uring.wait().map_err(Fault::from);
                result = result.and(waited).and(self.reap(&mut rings[0]));
            }
            if self.waiting.is_empty() {
                // After a fault, some requests have no response and get none.
                self.short_of_space = 0;
                rings[0].set_short_of_space(0);
                return result;
            }
            // While the device stops, the timer's descriptor is not polled.
            uring::pause(RETRY_PAUSE);
            result = result.and(self.retry_waiting(&mut rings[0]));
        }
    }
}

/// Header and shape of a request. A chain without room for both a header and a status cannot be answered at all.
fn dissect(chain: &Chain) -> Result<(Header, Shape), Fault> {
    let mut reader = chain.reader();
    let mut bytes = [0; size_of::<Header>()];
    if reader.remaining() < bytes.len() || chain.writable_len() == 0 {
        return Err(chain.too_short());
    }
    io::Read::read_exact(&mut reader, &mut bytes)?;
    // Every bit pattern is valid, and the length is right.
    let header = Header::read_from_bytes(&bytes).unwrap_or_default();
    let readable = reader.remaining() as u64;
    let range = if readable == size_of::<Range>() as u64 {
        let mut bytes = [0; size_of::<Range>()];
        io::Read::read_exact(&mut reader, &mut bytes)?;
        Range::read_from_bytes(&bytes).ok()
    } else {
        None
    };
    Ok((header, Shape { readable, writable: u64::from(chain.writable_len()) - 1, range }))
}

/// Completes a request: its status is the last writable byte (§5.2.6).
fn answer(chain: &Chain, status: Status, ring: &mut Ring) -> Result<(), Fault> {
    let mut writer = chain.writer();
    writer.skip(writer.remaining() - 1)?;
    writer.write_all(&[status as u8])?;
    ring.complete(chain.head(), chain.writable_len())
}
