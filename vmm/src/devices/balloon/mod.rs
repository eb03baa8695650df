//! virtio-balloon (§5.5): memory that the guest puts in the balloon or reports free returns to the host at once.

mod pages;
mod shared;
mod statistics;

#[cfg(test)]
pub(crate) mod tests;

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use garret_api::vmm::BalloonConfig;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vm_memory::Address;

use self::pages::{PFN_LEN, PFNS_MAX, coalesce_pfns};
use self::shared::Shared;
use self::statistics::STATISTICS_MAX;
use crate::memory::{coalesce, release};
use crate::seccomp::Role;
use crate::timer::Timer;
use crate::virtio::{self, Backend, Chain, Device, EventSet, Fault, Fds, Identity, Ring, Segment, Served, Token};

pub(crate) use self::shared::Balloon;

/// Feature bits (§5.5.3).
const F_STATS_VQ: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_REPORTING: u64 = 1 << 5;

/// Inflate, deflate, statistics, free page hints (never offered), free page reports (§5.5.2).
const QUEUE_SIZES: [u16; 5] = [128, 128, 16, 128, 128];
const STATISTICS: usize = 2;

const STATISTICS_DUE: Token = Token(0);

/// Why a balloon could not be created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("balloon: cannot make a timer: {0}")]
    Timer(io::Error),
    #[error(transparent)]
    Device(#[from] virtio::BuildError),
}

/// The balloon of a machine with `memory_mib` of memory, and the handle to control it by.
pub(crate) fn new(config: &BalloonConfig, memory_mib: u32) -> Result<(Device, Balloon), Error> {
    let shared = Arc::new(Shared::default());
    let backend = BalloonBackend::new(config, shared.clone()).map_err(Error::Timer)?;
    let identity = Identity {
        name: "balloon".to_owned(),
        device_type: VIRTIO_ID_BALLOON,
        features: features(config),
        queue_sizes: QUEUE_SIZES.to_vec(),
        config: shared.clone(),
    };
    let device = Device::new(identity, vec![(backend, 0..QUEUE_SIZES.len())], Role::Quiet)?;
    let interrupt = virtio::VirtioDevice::config_interrupt(&device).clone();
    Ok((device, Balloon::new(shared, interrupt, memory_mib)))
}

fn features(config: &BalloonConfig) -> u64 {
    let offered = [
        (config.statistics_interval_s > 0, F_STATS_VQ),
        (config.deflate_on_oom, F_DEFLATE_ON_OOM),
        (config.free_page_reporting, F_REPORTING),
    ];
    offered.into_iter().filter(|(offered, _)| *offered).fold(0, |features, (_, bit)| features | bit)
}

/// The purpose of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Inflate,
    Deflate,
    Statistics,
    Reporting,
    Nothing,
}

/// The specification numbers the queues as if all features were present; Linux counts only the present ones. With
/// reporting, the last queue may be any queue after the deflate queue.
fn purpose(queue: usize, features: u64) -> Purpose {
    match queue {
        0 => Purpose::Inflate,
        1 => Purpose::Deflate,
        STATISTICS if features & F_STATS_VQ != 0 => Purpose::Statistics,
        _ if features & F_REPORTING != 0 => Purpose::Reporting,
        _ => Purpose::Nothing,
    }
}

/// The device's worker part.
struct BalloonBackend {
    shared: Arc<Shared>,
    interval: Duration,
    timer: Timer,
    features: u64,
    /// The driver's statistics buffer: completing it requests new statistics.
    statistics: Option<Chain>,
}

impl BalloonBackend {
    fn new(config: &BalloonConfig, shared: Arc<Shared>) -> io::Result<Self> {
        let interval = Duration::from_secs(config.statistics_interval_s.into());
        Ok(Self { shared, interval, timer: Timer::new()?, features: 0, statistics: None })
    }

    fn take_statistics(&mut self, ring: &mut Ring) -> Result<(), Fault> {
        while let Some(chain) = ring.take()? {
            self.shared.set_statistics(statistics::parse(&read_up_to(&chain, STATISTICS_MAX)?));
            // A driver has one buffer. If there are several, all but the last are completed at once.
            if let Some(former) = self.statistics.replace(chain) {
                ring.complete(former.head(), 0)?;
            }
        }
        Ok(())
    }
}

impl Backend for BalloonBackend {
    fn reset(&mut self) {
        self.statistics = None;
        self.shared.reset();
    }

    fn start(&mut self, features: u64, fds: &mut Fds) -> Result<(), Fault> {
        self.features = features;
        if features & F_STATS_VQ != 0 {
            self.timer.set(self.interval, self.interval)?;
            fds.add(&self.timer, STATISTICS_DUE, EventSet::IN)?;
        }
        Ok(())
    }

    fn kicked(&mut self, queue: usize, rings: &mut [Ring]) -> Result<(), Fault> {
        let ring = &mut rings[queue];
        match purpose(queue, self.features) {
            Purpose::Inflate => release_all(ring, named_pages).map(drop),
            // The host allocates memory again when the guest touches it.
            Purpose::Deflate => ring.drain(|_| Ok(Served::Used(0))),
            Purpose::Statistics => self.take_statistics(ring),
            Purpose::Reporting => {
                let released = release_all(ring, |chain| Ok(reported_pages(chain)))?;
                self.shared.reported(released);
                Ok(())
            }
            Purpose::Nothing => Ok(()),
        }
    }

    fn ready(&mut self, _: Token, _: EventSet, rings: &mut [Ring], _: &mut Fds) -> Result<(), Fault> {
        self.timer.clear();
        match self.statistics.take() {
            Some(chain) => rings[STATISTICS].complete(chain.head(), 0),
            None => Ok(()),
        }
    }

    fn stop(&mut self, rings: &mut [Ring]) -> Result<(), Fault> {
        match self.statistics.take() {
            Some(chain) => rings[STATISTICS].put_back(chain),
            None => Ok(()),
        }
    }
}

/// Releases the pages of all requests that wait in `ring` together, in as few calls as possible; returns their bytes.
/// No request is answered before that, because the driver may use the pages again after the answer.
fn release_all(ring: &mut Ring, pages: impl Fn(&Chain) -> Result<Vec<Range<u64>>, Fault>) -> Result<u64, Fault> {
    let (mut ranges, mut done) = (Vec::new(), Vec::new());
    while let Some(chain) = ring.take()? {
        ranges.extend(pages(&chain)?);
        done.push((chain.head(), 0));
    }
    let released = release(ring.mem(), &coalesce(ranges));
    ring.complete_all(&done)?;
    Ok(released)
}

/// The pages that a report frees: its buffers themselves, until they are returned to the driver.
fn reported_pages(chain: &Chain) -> Vec<Range<u64>> {
    let range = |page: &Segment| page.addr.raw_value()..page.addr.raw_value() + u64::from(page.len);
    chain.writable().iter().map(range).collect()
}

/// The pages of an inflate request.
fn named_pages(chain: &Chain) -> Result<Vec<Range<u64>>, Fault> {
    if chain.readable_len() as usize > PFNS_MAX * PFN_LEN {
        return Err(Fault::Request("more page numbers at once than the balloon takes"));
    }
    Ok(coalesce_pfns(&read_up_to(chain, PFNS_MAX * PFN_LEN)?))
}

fn read_up_to(chain: &Chain, limit: usize) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    chain.reader().take(limit as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod queue_tests {
    use super::*;

    #[test]
    fn reporting_is_found_where_linux_and_where_the_specification_put_it() {
        let both = F_STATS_VQ | F_REPORTING;
        for (queue, features, expected) in [
            (0, both, Purpose::Inflate),
            (1, both, Purpose::Deflate),
            (2, both, Purpose::Statistics),
            (3, both, Purpose::Reporting),
            (4, both, Purpose::Reporting),
            (2, F_REPORTING, Purpose::Reporting),
            (2, 0, Purpose::Nothing),
            (4, F_STATS_VQ, Purpose::Nothing),
        ] {
            assert_eq!(purpose(queue, features), expected, "{queue} {features:#x}");
        }
    }
}
