//! The transport as a guest sees it: by memory, with real devices behind it and a fake hypervisor in KVM's place.

mod attack;
mod interrupts;
mod lifecycle;
mod scan;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::hypervisor::{Hypervisor, Msi};
use super::{BarWindow, ConfigWindow, DEVICE_SIZE, PciBus};
use crate::bus::BusDevice;
use crate::memory::SharedPage;
use crate::virtio::VirtioDevice;
use crate::virtio::testing::{DriverQueue, HUNG, ram};

const WINDOW: std::ops::Range<u64> = 0xC000_0000..0xC010_0000;
const CONFIG: u64 = 0xE000_0000;
const BAR: u64 = super::BAR_SIZE;

// The BAR's layout as the capabilities tell it; `scan` checks that they do.
const NOTIFY: u64 = 0x1000;
const TABLE: u64 = 0x2000;
const PENDING: u64 = 0x3000;

const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;
const VERSION_1: u64 = 1 << 32;

/// The connections that KVM would have. It rejects the calls that KVM would reject.
#[derive(Default)]
struct FakeHypervisor {
    state: Mutex<FakeState>,
}

#[derive(Default)]
struct FakeState {
    gsis: u32,
    doorbells: BTreeMap<u64, EventFd>,
    connected: BTreeMap<u32, (Msi, EventFd)>,
    pages: BTreeMap<u64, Arc<SharedPage>>,
}

impl FakeHypervisor {
    fn routes(&self) -> Vec<(u32, Msi)> {
        self.state.lock().unwrap().connected.iter().map(|(gsi, (msi, _))| (*gsi, *msi)).collect()
    }

    /// The number of interrupts that `gsi` has sent since the last call.
    fn sent(&self, gsi: u32) -> u64 {
        self.state.lock().unwrap().connected.get(&gsi).map_or(0, |(_, event)| event.read().unwrap_or(0))
    }

    fn event(&self, gsi: u32) -> EventFd {
        self.state.lock().unwrap().connected[&gsi].1.try_clone().unwrap()
    }
}

impl Hypervisor for FakeHypervisor {
    fn allocate_gsi(&self) -> io::Result<u32> {
        let mut state = self.state.lock().unwrap();
        state.gsis += 1;
        Ok(state.gsis - 1)
    }

    fn connect_interrupt(&self, gsi: u32, event: &EventFd, msi: Msi) -> io::Result<()> {
        let before = self.state.lock().unwrap().connected.insert(gsi, (msi, event.try_clone()?));
        assert!(before.is_none(), "interrupt {gsi} is connected already");
        Ok(())
    }

    fn reroute_interrupt(&self, gsi: u32, msi: Msi) -> io::Result<()> {
        self.state.lock().unwrap().connected.get_mut(&gsi).expect("not connected").0 = msi;
        Ok(())
    }

    fn disconnect_interrupt(&self, gsi: u32, _: &EventFd) -> io::Result<()> {
        self.state.lock().unwrap().connected.remove(&gsi).expect("not connected");
        Ok(())
    }

    fn connect_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let before = self.state.lock().unwrap().doorbells.insert(address, event.try_clone()?);
        assert!(before.is_none(), "two doorbells at {address:#x}");
        Ok(())
    }

    fn map_page(&self, address: u64, page: &Arc<SharedPage>) -> io::Result<()> {
        let before = self.state.lock().unwrap().pages.insert(address, page.clone());
        assert!(before.is_none(), "two pages at {address:#x}");
        Ok(())
    }
}

/// A guest with one virtio driver, for the device in slot 0.
struct Guest {
    bus: Arc<PciBus>,
    space: ConfigWindow,
    window: BarWindow,
    hypervisor: Arc<FakeHypervisor>,
    queues: Vec<DriverQueue>,
}

impl Guest {
    fn new(devices: Vec<Box<dyn VirtioDevice>>) -> Self {
        let hypervisor = Arc::new(FakeHypervisor::default());
        let sizes = devices[0].identity().queue_sizes.clone();
        let mem = ram(DriverQueue::SPACE * sizes.len() as u64);
        let places = (0..).step_by(DriverQueue::SPACE as usize);
        let queues = places.zip(sizes).map(|(base, size)| DriverQueue::new(mem.clone(), base, size)).collect();
        let mut bus = PciBus::new(hypervisor.clone(), (*mem).clone(), WINDOW, CONFIG);
        devices.into_iter().for_each(|device| bus.add(device).unwrap());
        let bus = Arc::new(bus);
        Self { bus: bus.clone(), space: ConfigWindow(bus.clone()), window: BarWindow(bus), hypervisor, queues }
    }

    fn rng() -> Self {
        Self::new(vec![Box::new(crate::devices::rng::new().unwrap())])
    }

    /// The value that the guest reads: from the mapped page if there is one, else from the bus.
    fn config(&self, slot: u32, register: u32, len: usize) -> u32 {
        let mut data = [0; 4];
        let offset = u64::from(slot) * DEVICE_SIZE + u64::from(register);
        self.space.read(offset, &mut data[..len]);
        if let Some(page) = self.hypervisor.state.lock().unwrap().pages.get(&(CONFIG + u64::from(slot) * DEVICE_SIZE)) {
            let mut shown = [0; 4];
            shown[..len].copy_from_slice(&page.bytes()[register as usize..][..len]);
            assert_eq!(shown, data, "slot {slot}, register {register:#x}");
        }
        u32::from_le_bytes(data)
    }

    fn set_config(&self, slot: u32, register: u32, data: &[u8]) {
        self.space.write(u64::from(slot) * DEVICE_SIZE + u64::from(register), data);
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut data = [0; N];
        self.window.read(at, &mut data);
        data
    }

    fn read16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.read(at))
    }

    fn read32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.read(at))
    }

    fn write16(&self, at: u64, value: u16) {
        self.window.write(at, &value.to_le_bytes());
    }

    fn write32(&self, at: u64, value: u32) {
        self.window.write(at, &value.to_le_bytes());
    }

    fn write64(&self, at: u64, value: u64) {
        self.write32(at, value as u32);
        self.write32(at + 4, (value >> 32) as u32);
    }

    fn status(&self) -> u8 {
        self.read::<1>(0x14)[0]
    }

    fn set_status(&self, status: u8) {
        self.window.write(0x14, &[status]);
    }

    fn set_features(&self, features: u64) {
        for half in 0..2 {
            self.write32(0x08, half);
            self.write32(0x0C, (features >> (32 * half)) as u32);
        }
    }

    fn offered(&self) -> u64 {
        (0..2).fold(0, |features, half| {
            self.write32(0x00, half);
            features | u64::from(self.read32(0x04)) << (32 * half)
        })
    }

    /// Reset, and the steps of §3.1.1 up to FEATURES_OK.
    fn negotiate(&mut self) {
        self.set_status(0);
        let began = Instant::now();
        while self.status() != 0 {
            assert!(began.elapsed() < HUNG, "the reset does not end");
            std::thread::yield_now();
        }
        self.queues.iter_mut().for_each(DriverQueue::reset);
        self.set_status(ACKNOWLEDGE);
        self.set_status(ACKNOWLEDGE | DRIVER);
        self.set_features(self.offered());
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(self.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    fn enable_queue(&self, queue: u16) {
        let driver = &self.queues[usize::from(queue)];
        self.write16(0x16, queue);
        self.write16(0x18, driver.size);
        self.write16(0x1A, queue + 1);
        self.write64(0x20, driver.desc_table());
        self.write64(0x28, driver.avail_ring());
        self.write64(0x30, driver.used_ring());
        self.write16(0x1C, 1);
    }

    /// All vectors open, vector `n` sent to address 0xFEE00000 with data `n`; MSI-X on.
    fn open_vectors(&self) {
        for vector in 0..=self.queues.len() as u64 {
            self.write64(TABLE + 16 * vector, 0xFEE0_0000);
            self.write32(TABLE + 16 * vector + 8, vector as u32);
            self.write32(TABLE + 16 * vector + 12, 0);
        }
        self.set_config(0, self.capability(0x11, 0) + 2, &0x8000u16.to_le_bytes());
    }

    /// All steps to DRIVER_OK: the configuration on vector 0, queue `n` on vector `n + 1`.
    fn set_up(&mut self) {
        self.negotiate();
        self.open_vectors();
        self.write16(0x10, 0);
        (0..self.queues.len() as u16).for_each(|queue| self.enable_queue(queue));
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        assert_eq!(self.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// The offset of the capability of this id and virtio type.
    fn capability(&self, id: u8, cfg_type: u8) -> u32 {
        let mut at = self.config(0, 0x34, 1);
        while at != 0 {
            let [found, next, _, found_type] = self.config(0, at, 4).to_le_bytes();
            if found == id && (id != 9 || found_type == cfg_type) {
                return at;
            }
            at = next.into();
        }
        panic!("no capability {id:#x} of type {cfg_type}");
    }

    /// Requests `len` bytes from the rng and kicks the queue.
    fn ask(&mut self, len: u32) {
        self.queues[0].add(&[], &[len]);
        self.window.write(NOTIFY, &0u16.to_le_bytes());
    }

    /// The answer, once the fake hypervisor has its interrupt.
    fn answer(&mut self) -> Vec<u8> {
        let event = self.hypervisor.event(1);
        self.queues[0].interrupt = Arc::new(event);
        self.queues[0].wait_used().bytes
    }
}
