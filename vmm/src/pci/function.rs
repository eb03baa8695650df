//! A virtio device as a PCI function (virtio 1.2, §4.1): its one BAR, its interrupts, its doorbells, its states.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::config_space::{ConfigSpace, Ids};
use super::hypervisor::Hypervisor;
use super::msix::{self, Msix};
use super::registers::{Live, Registers, Request};
use crate::memory::SharedPage;
use crate::virtio::{Busy, GuestRam, QueueState, Ring, Start, VirtioDevice, check_queue};

/// The size and alignment of the BAR, in bytes.
pub(super) const BAR_SIZE: u64 = 0x4000;

// The layout of the BAR. Parts that drivers map separately are in separate pages.
const COMMON: u64 = 0x000;
const ISR: u64 = 0x100;
const DEVICE: u64 = 0x400;
const NOTIFY: u64 = 0x1000;
const MSIX_TABLE: u64 = 0x2000;
const MSIX_PENDING: u64 = 0x3000;
/// Bytes per queue in the notification area: `notify_off_multiplier`.
const NOTIFY_STEP: u64 = 4;

const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_MSIX: u8 = 0x11;
const VIRTIO_VENDOR: u16 = 0x1AF4;
/// Device ids of virtio 1.0 and later count from here.
const MODERN_DEVICE: u16 = 0x1040;

/// How long the vCPU that requests a reset waits for it before it returns to the guest, which then polls.
const RESET_DEADLINE: Duration = Duration::from_millis(20);

/// One function. Its holder owns the device and, while the device does not run, its queues.
pub(super) struct Function {
    device: Box<dyn VirtioDevice>,
    config: ConfigSpace,
    config_page: Arc<SharedPage>,
    msix_capability: usize,
    registers: Registers,
    msix: Msix,
    doorbells: Vec<Arc<EventFd>>,
    mem: Arc<GuestRam>,
    state: DeviceState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeviceState {
    /// The driver is not ready.
    Idle,
    /// The workers have the rings.
    Running,
    /// The driver requested a reset; the workers have not stopped yet.
    Resetting,
    /// The machine pauses the device; the workers have not stopped yet.
    Pausing,
    /// The machine has paused the device, which can be resumed.
    Paused,
}

impl Function {
    /// Puts `device` at `bar`, a multiple of [`BAR_SIZE`], and its configuration space at `config_at`, a page's
    /// address.
    pub(super) fn new(
        device: Box<dyn VirtioDevice>,
        bar: u32,
        config_at: u64,
        mem: Arc<GuestRam>,
        hypervisor: Arc<dyn Hypervisor>,
    ) -> io::Result<Self> {
        let identity = device.identity();
        let queues = identity.queue_sizes.len();
        // One vector per queue and one for the configuration.
        if queues >= msix::VECTORS_MAX {
            return Err(io::Error::other("too many queues for one function"));
        }
        let registers = Registers::new(identity.features, &identity.queue_sizes, queues as u16 + 1);
        let doorbells = (0..queues as u64).map(|queue| {
            let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
            hypervisor.connect_doorbell(u64::from(bar) + NOTIFY + queue * NOTIFY_STEP, &event)?;
            Ok(Arc::new(event))
        });
        let doorbells = doorbells.collect::<io::Result<_>>()?;
        let (config, msix_capability) = config_space(identity.device_type, bar, queues as u16);
        let config_page = Arc::new(SharedPage::default());
        config_page.write(config.bytes());
        hypervisor.map_page(config_at, &config_page)?;
        let msix = Msix::new(queues + 1, hypervisor)?;
        Ok(Self {
            device,
            config,
            config_page,
            msix_capability,
            registers,
            msix,
            doorbells,
            mem,
            state: DeviceState::Idle,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.device.identity().name
    }

    /// Reads configuration space, for an access that does not use its page.
    pub(super) fn read_config(&self, at: usize, data: &mut [u8]) {
        self.config.read(at, data);
    }

    /// Writes configuration space.
    pub(super) fn write_config(&mut self, at: usize, data: &[u8]) {
        self.config.write(at, data);
        self.config_page.write(self.config.bytes());
        let control = self.msix_capability + 2;
        if at < control + 2 && control < at + data.len() {
            let mut bytes = [0; 2];
            self.config.read(control, &mut bytes);
            let result = self.msix.set_control(u16::from_le_bytes(bytes));
            self.check_interrupts(result);
        }
    }

    pub(super) fn read_bar(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset {
            COMMON..ISR => {
                self.finish_reset(Duration::ZERO);
                let value = self.registers.read(offset - COMMON, data.len(), self.live());
                let bytes = value.to_le_bytes();
                let len = data.len().min(bytes.len());
                data[..len].copy_from_slice(&bytes[..len]);
            }
            // There is no wired interrupt, so its status is always 0.
            ISR..DEVICE => {}
            DEVICE..NOTIFY => self.device.identity().config.read(offset - DEVICE, data),
            MSIX_TABLE..MSIX_PENDING => self.msix.read_table(offset - MSIX_TABLE, data),
            MSIX_PENDING..BAR_SIZE => self.msix.read_pending(offset - MSIX_PENDING, data),
            _ => {}
        }
    }

    pub(super) fn write_bar(&mut self, offset: u64, data: &[u8]) {
        match offset {
            COMMON..ISR if self.state != DeviceState::Resetting => self.write_common(offset - COMMON, data),
            DEVICE..NOTIFY => self.device.identity().config.write(offset - DEVICE, data),
            // Under KVM these writes never reach this code; KVM raises the same event.
            NOTIFY..MSIX_TABLE => {
                let queue = ((offset - NOTIFY) / NOTIFY_STEP) as usize;
                if let Some(doorbell) = self.doorbells.get(queue) {
                    let _ = doorbell.write(1);
                }
            }
            MSIX_TABLE..MSIX_PENDING => {
                let result = self.msix.write_table(offset - MSIX_TABLE, data);
                self.check_interrupts(result);
            }
            _ => {}
        }
    }

    /// Takes the rings back from the workers so that the device stops; waits at most `deadline`. If the workers are
    /// still busy, call it again, or call [`resume`](Self::resume).
    pub(super) fn pause(&mut self, deadline: Duration) -> Result<(), Busy> {
        self.finish_reset(deadline);
        match self.state {
            DeviceState::Idle | DeviceState::Paused => Ok(()),
            DeviceState::Resetting => Err(Busy),
            DeviceState::Running | DeviceState::Pausing => {
                self.state = DeviceState::Pausing;
                let states = self.device.stop(deadline)?;
                self.registers.set_queue_states(states);
                self.state = DeviceState::Paused;
                Ok(())
            }
        }
    }

    /// Returns the rings to the workers. Workers that are still busy with a pause must finish it first, because a
    /// worker that was asked to stop cannot resume: call it again.
    pub(super) fn resume(&mut self) -> Result<(), Busy> {
        if self.state == DeviceState::Pausing {
            self.pause(Duration::ZERO)?;
        }
        if self.state == DeviceState::Paused {
            self.start(true);
        }
        Ok(())
    }

    fn live(&self) -> Live {
        let config_interrupt = self.device.config_interrupt();
        Live {
            generation: config_interrupt.generation(),
            needs_reset: config_interrupt.is_reset_needed(),
            resetting: self.state == DeviceState::Resetting,
        }
    }

    fn write_common(&mut self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        let Some(target) = bytes.get_mut(..data.len()) else { return };
        target.copy_from_slice(data);
        let mem = &self.mem;
        let is_valid = |state: &QueueState| check_queue(mem, state).is_ok();
        match self.registers.write(offset, data.len(), u32::from_le_bytes(bytes), is_valid) {
            Request::Nothing => {}
            Request::Start => self.start(false),
            Request::Reset => {
                self.state = DeviceState::Resetting;
                self.finish_reset(RESET_DEADLINE);
            }
            Request::BadQueue(queue) => self.fault(&format_args!("queue {queue} cannot be where the driver puts it")),
        }
    }

    fn start(&mut self, resumed: bool) {
        let config_interrupt = self.device.config_interrupt();
        config_interrupt.connect(self.msix.event(self.registers.config_vector()));
        if config_interrupt.is_reset_needed() {
            return;
        }
        match self
            .rings()
            .and_then(|rings| self.device.start(Start { features: self.registers.features(), rings, resumed }))
        {
            Ok(()) => self.state = DeviceState::Running,
            Err(error) => self.fault(&error),
        }
    }

    fn rings(&self) -> io::Result<Vec<Ring>> {
        let features = self.registers.features();
        let counters = self.device.config_interrupt().counters();
        let queues = self.registers.queues().iter().zip(&self.doorbells);
        let rings = queues.map(|(queue, doorbell)| {
            let interrupt = self.msix.event(queue.vector);
            let (mem, doorbell) = (self.mem.clone(), doorbell.clone());
            Ring::new(mem, queue.state, features, doorbell, interrupt, counters.clone()).map_err(io::Error::other)
        });
        rings.collect()
    }

    fn finish_reset(&mut self, deadline: Duration) {
        if self.state == DeviceState::Resetting && self.device.stop(deadline).is_ok() {
            self.registers.reset();
            self.device.config_interrupt().reset();
            self.state = DeviceState::Idle;
        }
    }

    fn check_interrupts(&self, result: io::Result<()>) {
        if let Err(error) = result {
            self.fault(&error);
        }
    }

    fn fault(&self, why: &dyn std::fmt::Display) {
        self.device.config_interrupt().fault(self.name(), why);
    }
}

fn config_space(device_type: u32, bar: u32, queues: u16) -> (ConfigSpace, usize) {
    let ids = Ids {
        vendor: VIRTIO_VENDOR,
        device: MODERN_DEVICE + device_type as u16,
        revision: 1,
        class: class(device_type),
    };
    let mut config = ConfigSpace::new(ids, bar, BAR_SIZE as u32);
    let mut body = Vec::new();
    // There is one vector more than queues, and the field holds the number of vectors minus one; both tables are in BAR
    // 0.
    body.extend(queues.to_le_bytes());
    body.extend((MSIX_TABLE as u32).to_le_bytes());
    body.extend((MSIX_PENDING as u32).to_le_bytes());
    let msix = config.add_capability(CAPABILITY_MSIX, &body);
    config.allow(msix + 2, &msix::CONTROL_WRITABLE.to_le_bytes());
    // §4.1.4: type, offset, length. VIRTIO_PCI_CAP_PCI_CFG, for firmware that cannot map a BAR, is left out: there is
    // no such firmware here, and every capability costs each boot a dozen exits.
    for (cfg_type, offset, length) in [
        (1, COMMON, super::registers::SIZE),
        (2, NOTIFY, u64::from(queues) * NOTIFY_STEP),
        (3, ISR, 1),
        (4, DEVICE, NOTIFY - DEVICE),
    ] {
        let is_notify = cfg_type == 2;
        let len = if is_notify { 20 } else { 16 };
        let mut body = vec![len, cfg_type, 0, 0, 0, 0];
        body.extend((offset as u32).to_le_bytes());
        body.extend((length as u32).to_le_bytes());
        if is_notify {
            body.extend((NOTIFY_STEP as u32).to_le_bytes());
        }
        config.add_capability(CAPABILITY_VENDOR, &body);
    }
    (config, msix)
}

/// The PCI class, which only describes the device for users; drivers match the ids.
fn class(device_type: u32) -> u32 {
    use virtio_bindings::virtio_ids::{VIRTIO_ID_BLOCK, VIRTIO_ID_CONSOLE, VIRTIO_ID_NET};
    match device_type {
        VIRTIO_ID_NET => 0x02_00_00,
        VIRTIO_ID_BLOCK => 0x01_80_00,
        VIRTIO_ID_CONSOLE => 0x07_80_00,
        _ => 0xFF_00_00,
    }
}
