//! virtio-mem (§5.15): the guest has of its hotplug region what it was allowed to plug, and nothing more.
//!
//! What is plugged is held where everybody looks who needs it ([`crate::memory::Plugged`]); the driver's requests change it on
//! this device's one thread. A reset of the device changes nothing (§5.15.5): the guest still uses its memory.
//!
//! A hostile guest can hold more than it was allowed. It reaches whole granules, so also the unplugged rest of those in
//! use. After a request to unplug it can keep all it had, because the host cannot take plugged memory from it. It also
//! keeps what a request in flight wrote to memory that was unplugged meanwhile. Beyond all that the machine's control
//! group limits it.

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
use crate::virtio::{self, Backend, Chain, Device, Fault, Fds, Identity, Limited, Ring, Served};

pub use self::region::Slots;
pub use self::shared::{Hotplug, TargetRefused};

/// The device type (§5.15.1).
const DEVICE_TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
/// The driver does not touch what is not plugged (§5.15.3).
const F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;
const QUEUE_SIZE: u16 = 64;

/// Why the device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The region is ordinary memory.
    #[error("mem: the region at {0:#x} is not made for plugging")]
    NotPluggable(u64),
    /// The device around it.
    #[error(transparent)]
    Device(#[from] virtio::BuildError),
}

/// The device that plugs and unplugs `region`, by `slots` for the guest's processors, and the handle to control it by.
pub fn new(config: &HotplugConfig, region: &GuestRegion, slots: Arc<dyn Slots>) -> Result<(Device, Hotplug), Error> {
    let region = Region::new(region, slots)?;
    let shared = Arc::new(Shared::new(&region, config.requested_mib));
    let identity = Identity {
        name: "mem".to_owned(),
        device_type: DEVICE_TYPE,
        features: F_UNPLUGGED_INACCESSIBLE,
        queue_sizes: vec![QUEUE_SIZE],
        config: shared.clone(),
    };
    let backend = MemBackend { region, shared: shared.clone(), log: Limited::default() };
    let device = Device::new(identity, vec![(backend, 0..1)], Role::Mem)?;
    let interrupt = virtio::VirtioDevice::config_interrupt(&device).clone();
    Ok((device, Hotplug::new(shared, interrupt)))
}

/// The device's worker part.
struct MemBackend {
    region: Region,
    shared: Arc<Shared>,
    log: Limited,
}

impl Backend for MemBackend {
    fn start(&mut self, features: u64, _: &mut Fds) -> Result<(), Fault> {
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
        // Looked at before anything is done: a request whose answer finds no room has no effect.
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
                    self.warn("unplug", &error); // it is unplugged all the same, see there
                }
                Response::Ack
            }
        }
    }

    fn warn(&self, what: &str, error: &std::io::Error) {
        self.log.log(|suppressed| tracing::warn!(suppressed, "mem: the host failed to {what} memory: {error}"));
    }
}
