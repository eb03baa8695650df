//! virtio-mem (§5.15): the guest can plug as much of its hotplug region as it was allowed to, and no more.
//!
//! [`crate::memory::Plugged`] holds the plugged blocks, for all users of that information. The driver's requests change
//! it on this device's single thread. A reset of the device changes nothing (§5.15.5), because the guest still uses its
//! memory.
//!
//! A hostile guest can hold more memory than it was allowed. It can access whole granules, including the unplugged rest
//! of granules in use. After a request to unplug, it can keep all its memory, because the host cannot take plugged
//! memory away. It also keeps data that a request in flight wrote to memory that was unplugged meanwhile. The machine's
//! control group limits all of this.

mod plan;
mod protocol;
mod region;
mod shared;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use garret_api::vmm::HotplugConfig;

use self::plan::{Plan, plan};
use self::protocol::{REQUEST_LEN, RESPONSE_LEN, Request, Response};
use self::region::Region;
use self::shared::Shared;
use crate::memory::GuestRegion;
use crate::seccomp::Role;
use crate::virtio::{self, Backend, Chain, Device, EventOps, Fault, Identity, LogLimiter, Ring, Served};

pub(crate) use self::region::Slots;
pub(crate) use self::shared::{Hotplug, TargetRefused};

/// The device type (§5.15.1).
const DEVICE_TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
/// The driver does not access unplugged memory (§5.15.3).
const F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;
const QUEUE_SIZE: u16 = 64;

/// Why the device could not be created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The region is ordinary memory, which cannot be plugged.
    #[error("mem: the region at {0:#x} is not made for plugging")]
    NotPluggable(u64),
    #[error(transparent)]
    Device(#[from] virtio::BuildError),
}

/// The device that plugs and unplugs `region`, by `slots` for the guest's processors, and the handle that controls it.
pub(crate) fn new(
    config: &HotplugConfig,
    region: &GuestRegion,
    slots: Arc<dyn Slots>,
) -> Result<(Device, Hotplug), Error> {
    let region = Region::new(region, slots)?;
    let shared = Arc::new(Shared::new(&region, config.requested_mib));
    let identity = Identity {
        name: "mem".to_owned(),
        device_type: DEVICE_TYPE,
        features: F_UNPLUGGED_INACCESSIBLE,
        queue_sizes: vec![QUEUE_SIZE],
        config: shared.clone(),
    };
    let backend = MemBackend { region, shared: shared.clone(), log: LogLimiter::default() };
    let device = Device::new(identity, vec![(backend, 0..1)], Role::Mem)?;
    let interrupt = virtio::VirtioDevice::config_interrupt(&device).clone();
    Ok((device, Hotplug::new(shared, interrupt)))
}

/// The device's worker part.
struct MemBackend {
    region: Region,
    shared: Arc<Shared>,
    log: LogLimiter,
}

impl Backend for MemBackend {
    fn start(&mut self, features: u64, _: &mut EventOps<'_>) -> Result<(), Fault> {
        match features & F_UNPLUGGED_INACCESSIBLE {
            0 => Err(Fault::Feature("VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE")),
            _ => Ok(()),
        }
    }

    fn kicked(&mut self, queue: usize, rings: &mut [Ring]) -> Result<(), Fault> {
        rings[queue].drain(|chain| self.serve(&chain))
    }
}

impl MemBackend {
    fn serve(&self, chain: &Chain) -> Result<Served, Fault> {
        let request = Request::parse(&chain.reader().read_obj::<[u8; REQUEST_LEN]>()?);
        // Check this first: a request without room for the response must have no effect.
        if (chain.writable_len() as usize) < RESPONSE_LEN {
            return Err(chain.too_short());
        }
        let response = self.answer(&request);
        if request.changes() && response != Response::Ack {
            self.shared.refused();
        }
        chain.writer().write_obj(&response.bytes())?;
        Ok(Served::Used(RESPONSE_LEN as u32))
    }

    fn answer(&self, request: &Request) -> Response {
        match plan(request, self.region.base(), self.region.map(), self.shared.requested()) {
            Plan::Answer(response) => response,
            Plan::Plug(range) => match self.region.plug(&range) {
                Ok(()) => Response::Ack,
                Err(error) => {
                    self.warn("plug", &error);
                    Response::Busy
                }
            },
            Plan::Unplug(range) => {
                if let Err(error) = self.region.unplug(&range) {
                    self.warn("unplug", &error); // the memory is unplugged nevertheless, see `Region::unplug`
                }
                Response::Ack
            }
        }
    }

    fn warn(&self, what: &str, error: &std::io::Error) {
        self.log.log(|suppressed| tracing::warn!(suppressed, "mem: the host failed to {what} memory: {error}"));
    }
}
