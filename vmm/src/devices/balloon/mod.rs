//! virtio-balloon (§5.5), for free page reporting only: memory that the guest reports free returns to the host at once.
//!
//! The balloon itself stays empty. virtio-mem, reclaim in the guest and reclaim on the host take memory from a machine.

#[cfg(test)]
pub(crate) mod tests;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vm_memory::Address;

use crate::memory::{coalesce, release};
use crate::seccomp::Role;
use crate::virtio::{self, Backend, Chain, ConfigBytes, Device, EventOps, Fault, Identity, Ring, Segment, Served};

/// VIRTIO_BALLOON_F_PAGE_REPORTING (§5.5.3).
const F_REPORTING: u64 = 1 << 5;

/// Inflate, deflate, statistics, free page hints, free page reports (§5.5.2).
const QUEUE_SIZES: [u16; 5] = [128; 5];
const DEFLATE: usize = 1;

/// Target and actual size of the balloon (§5.5.4). The driver writes the actual size, which is always 0.
const CONFIG: [u8; 8] = [0; 8];

/// Bytes that the guest has reported free since the start; clones refer to the same number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reported(Arc<AtomicU64>);

impl Reported {
    /// Relaxed, because no other data depends on the number.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The device, which offers reporting only if `reporting` is set, and what it counts.
pub(crate) fn new(reporting: bool) -> Result<(Device, Reported), virtio::BuildError> {
    let reported = Reported::default();
    let backend = BalloonBackend { reported: reported.clone(), features: 0 };
    let identity = Identity {
        name: "balloon".to_owned(),
        device_type: VIRTIO_ID_BALLOON,
        features: if reporting { F_REPORTING } else { 0 },
        queue_sizes: QUEUE_SIZES.to_vec(),
        config: Arc::new(ConfigBytes(CONFIG.to_vec())),
    };
    let device = Device::new(identity, vec![(backend, 0..QUEUE_SIZES.len())], Role::Quiet)?;
    Ok((device, reported))
}

/// Whether a queue holds reports. The specification numbers the queues as if all features were present, and Linux counts
/// only those that are. With reporting, the reports may be in any queue after the deflate queue.
fn is_reporting(queue: usize, features: u64) -> bool {
    queue > DEFLATE && features & F_REPORTING != 0
}

/// The device's worker part.
struct BalloonBackend {
    reported: Reported,
    features: u64,
}

impl Backend for BalloonBackend {
    fn start(&mut self, features: u64, _: &mut EventOps<'_>) -> Result<(), Fault> {
        self.features = features;
        Ok(())
    }

    fn kicked(&mut self, queue: usize, rings: &mut [Ring]) -> Result<(), Fault> {
        let ring = &mut rings[queue];
        if is_reporting(queue, self.features) {
            self.reported.add(release_all(ring)?);
            return Ok(());
        }
        // The target is 0, so no driver has a reason to inflate. A page that is named stays the guest's.
        ring.drain(|_| Ok(Served::Used(0)))
    }
}

/// Releases the pages of all reports that wait in `ring` together, in as few calls as possible; returns their bytes.
/// No report is answered before that, because the driver may use the pages again after the answer.
fn release_all(ring: &mut Ring) -> Result<u64, Fault> {
    let (mut ranges, mut done) = (Vec::new(), Vec::new());
    while let Some(chain) = ring.take()? {
        ranges.extend(reported_pages(&chain));
        done.push((chain.head(), 0));
    }
    let released = release(ring.mem(), &coalesce(ranges));
    ring.complete_all(&done)?;
    Ok(released)
}

/// The pages that a report frees: its buffers themselves, until they are returned to the driver.
fn reported_pages(chain: &Chain) -> impl Iterator<Item = Range<u64>> {
    let range = |page: &Segment| page.addr.raw_value()..page.addr.raw_value() + u64::from(page.len);
    chain.writable().iter().map(range)
}
