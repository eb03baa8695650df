use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use garret_api::vmm::{MemoryInfo, MemoryTarget};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::protocol::{Blocks, CONFIG_LEN, State};
use super::*;
use crate::devices::conformance::{Built, Request as Sent, Subject};
use crate::memory::{BLOCK, GuestRam};
use crate::virtio::testing::{HOTPLUG, Rig};

const MIB: u64 = 1 << 20;
const REGION_MIB: u64 = 512;
const FIRST: Blocks = Blocks { address: HOTPLUG, count: 1 };

/// Memory slots in place of KVM; it rejects what KVM would reject.
#[derive(Default)]
struct FakeSlots {
    mapped: Mutex<Vec<usize>>,
    fails: AtomicBool,
}

impl Slots for FakeSlots {
    fn set_mapped(&self, index: usize, mapped: bool) -> std::io::Result<()> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
        let mut slots = self.mapped.lock().unwrap();
        match (mapped, slots.iter().position(|slot| *slot == index)) {
            (true, None) => slots.push(index),
            (true, Some(_)) => {}
            (false, Some(at)) => _ = slots.swap_remove(at),
            (false, None) => panic!("granule {index} has no slot"),
        }
        Ok(())
    }
}

fn device(ram: &GuestRam, slots: &Arc<FakeSlots>, requested_mib: u32) -> (Device, Hotplug) {
    let config = HotplugConfig { size_mib: REGION_MIB as u32, requested_mib };
    new(&config, ram.hotplug().unwrap(), slots.clone()).unwrap()
}

fn region() -> GuestRam {
    GuestRam::from_ranges(&[(0, 4096)]).with_hotplug_at(HOTPLUG, (REGION_MIB * MIB) as usize)
}

fn build() -> Built {
    let ram = region();
    let (device, _) = device(&ram, &Arc::default(), 64);
    (Box::new(device), Box::new(ram))
}

pub(crate) fn subject() -> Subject {
    let is_ack = |bytes: &[u8]| bytes == Response::Ack.bytes();
    let send = |request: Request, is_right| Sent::new(0, &[&request.bytes()], &[RESPONSE_LEN as u32], is_right);
    Subject {
        build,
        session: vec![
            send(Request::UnplugAll, is_ack), // what a former driver left
            send(Request::Plug(FIRST), is_ack),
            send(Request::Plug(FIRST), |bytes| bytes == Response::Error.bytes()),
            send(Request::State(FIRST), |bytes| bytes == Response::State(State::Plugged).bytes()),
            send(Request::Unplug(FIRST), is_ack),
            send(Request::State(FIRST), |bytes| bytes == Response::State(State::Unplugged).bytes()),
        ],
    }
}

struct Guest {
    rig: Rig,
    hotplug: Hotplug,
    ram: GuestRam,
    slots: Arc<FakeSlots>,
}

impl Guest {
    fn new(requested_mib: u32) -> Self {
        let (ram, slots) = (region(), Arc::default());
        let (device, hotplug) = device(&ram, &slots, requested_mib);
        let mut rig = Rig::new(Box::new(device));
        rig.start();
        Self { rig, hotplug, ram, slots }
    }

    fn ask(&mut self, request: Request) -> [u8; RESPONSE_LEN] {
        self.rig.queues[0].add(&[request.bytes().to_vec()], &[RESPONSE_LEN as u32]);
        self.rig.queues[0].kick();
        self.rig.queues[0].wait_used().bytes.try_into().unwrap()
    }

    fn expect(&mut self, request: Request, response: Response) {
        assert_eq!(self.ask(request), response.bytes(), "{request:?}");
    }

    fn info(&self) -> (u32, u32, u64) {
        let info = self.hotplug.info();
        (info.requested_mib, info.plugged_mib, info.refused)
    }

    fn mapped(&self) -> Vec<usize> {
        let mut mapped = self.slots.mapped.lock().unwrap().clone();
        mapped.sort_unstable();
        mapped
    }

    fn config(&self) -> [u64; CONFIG_LEN / 8] {
        let mut bytes = [0; CONFIG_LEN];
        self.rig.device.identity().config.read(0, &mut bytes);
        std::array::from_fn(|at| u64::from_le_bytes(bytes[8 * at..8 * at + 8].try_into().unwrap()))
    }

    /// Whether a device finds memory at `offset` of the region.
    fn reaches(&self, offset: u64) -> bool {
        self.ram.read_obj::<u8>(GuestAddress(HOTPLUG + offset)).is_ok()
    }
}

fn blocks(offset_mib: u64, mib: u64) -> Blocks {
    Blocks { address: HOTPLUG + offset_mib * MIB, count: (mib * MIB / BLOCK) as u16 }
}

#[test]
fn plugged_memory_is_there_until_it_is_unplugged() {
    let mut guest = Guest::new(300);
    assert_eq!((guest.mapped(), guest.info()), (vec![], (300, 0, 0)));
    guest.expect(Request::Plug(blocks(120, 16)), Response::Ack);
    assert_eq!((guest.mapped(), guest.info()), (vec![0, 1], (300, 16, 0)));
    assert_eq!([119, 120, 135, 136].map(|mib| guest.reaches(mib * MIB)), [false, true, true, false]);

    guest.ram.write_obj(0x55_u8, GuestAddress(HOTPLUG + 130 * MIB)).unwrap();
    guest.expect(Request::Unplug(blocks(120, 8)), Response::Ack);
    assert_eq!((guest.mapped(), guest.info()), (vec![1], (300, 8, 0)));
    assert!(!guest.reaches(120 * MIB) && guest.reaches(128 * MIB));

    guest.expect(Request::Unplug(blocks(130, 2)), Response::Ack);
    guest.expect(Request::Plug(blocks(130, 2)), Response::Ack);
    assert_eq!(guest.ram.read_obj::<u8>(GuestAddress(HOTPLUG + 130 * MIB)).unwrap(), 0, "the host has it back");
    guest.expect(Request::UnplugAll, Response::Ack);
    guest.expect(Request::UnplugAll, Response::Ack);
    assert_eq!((guest.mapped(), guest.info()), (vec![], (300, 0, 0)));
}

#[test]
fn memory_beside_plugged_blocks_is_freed_with_the_granule() {
    let mut guest = Guest::new(300);
    guest.expect(Request::Plug(blocks(0, 2)), Response::Ack);
    let beside = GuestAddress(HOTPLUG + 50 * MIB);
    guest.ram.mapped().write_obj(0x55_u8, beside).unwrap(); // as a processor can: the granule has its slot
    guest.expect(Request::Unplug(blocks(0, 2)), Response::Ack);
    assert_eq!(guest.ram.mapped().read_obj::<u8>(beside).unwrap(), 0);
}

#[test]
fn refusals_are_answered_and_counted() {
    let mut guest = Guest::new(16);
    guest.expect(Request::Plug(blocks(0, 18)), Response::Nack);
    guest.expect(Request::Plug(Blocks { address: HOTPLUG + 1, count: 1 }), Response::Error);
    guest.expect(Request::Unplug(blocks(0, 2)), Response::Error);
    guest.expect(Request::Unknown, Response::Error);
    guest.expect(Request::State(Blocks { address: 0, count: 1 }), Response::Error);
    guest.expect(Request::Plug(blocks(0, 2)), Response::Ack);
    guest.expect(Request::Plug(blocks(128, 2)), Response::Ack);
    guest.expect(Request::Plug(blocks(256, 2)), Response::Busy);
    assert_eq!(guest.info(), (16, 4, 5));
    assert!(!guest.rig.is_broken());
}

#[test]
fn without_a_free_slot_nothing_is_plugged() {
    let mut guest = Guest::new(300);
    guest.slots.fails.store(true, Ordering::Relaxed);
    guest.expect(Request::Plug(blocks(120, 16)), Response::Busy);
    assert_eq!((guest.mapped(), guest.info()), (vec![], (300, 0, 1)));
    guest.slots.fails.store(false, Ordering::Relaxed);
    guest.expect(Request::Plug(blocks(120, 16)), Response::Ack);

    // A slot that cannot be removed stays, and is already present when the granule is plugged again.
    guest.slots.fails.store(true, Ordering::Relaxed);
    guest.expect(Request::UnplugAll, Response::Ack);
    assert_eq!((guest.mapped(), guest.info()), (vec![0, 1], (300, 0, 1)));
    assert!(!guest.reaches(120 * MIB));
    guest.slots.fails.store(false, Ordering::Relaxed);
    guest.expect(Request::Plug(blocks(120, 16)), Response::Ack);
}

#[test]
fn the_driver_reads_where_the_region_is_and_what_is_requested() {
    let mut guest = Guest::new(16);
    let config = |plugged: u64, requested: u64| {
        [BLOCK, 0, HOTPLUG, REGION_MIB * MIB, REGION_MIB * MIB, plugged * MIB, requested * MIB]
    };
    assert_eq!(guest.config(), config(0, 16));
    guest.expect(Request::Plug(blocks(0, 4)), Response::Ack);
    let generation = guest.rig.device.config_interrupt().generation();
    guest.hotplug.set_target(MemoryTarget { requested_mib: 512 }).unwrap();
    assert_ne!(guest.rig.device.config_interrupt().generation(), generation, "the driver gets an interrupt");
    assert_eq!(guest.config(), config(4, 512));
    let mut beyond = [7; 4];
    guest.rig.device.identity().config.read(CONFIG_LEN as u64, &mut beyond);
    guest.rig.device.identity().config.read(u64::MAX, &mut beyond);
    assert_eq!(beyond, [7; 4]);
}

#[test]
fn a_target_is_whole_blocks_inside_the_region() {
    let guest = Guest::new(16);
    let set = |requested_mib| guest.hotplug.set_target(MemoryTarget { requested_mib });
    for good in [0, 2, 512] {
        assert_eq!((set(good), guest.info().0), (Ok(()), good));
    }
    for (bad, line) in [
        (3, "requested_mib: 3 is not a multiple of 2"),
        (514, "requested_mib: 514 is not between 0 and 512, the size of the region"),
        (u32::MAX, "requested_mib: 4294967295 is not between 0 and 512, the size of the region"),
    ] {
        assert_eq!(set(bad).unwrap_err().to_string(), line);
    }
    assert_eq!(guest.info().0, 512);
}

#[test]
fn a_reset_and_a_pause_change_nothing() {
    let mut guest = Guest::new(64);
    guest.expect(Request::Plug(blocks(0, 32)), Response::Ack);
    let states = guest.rig.stop();
    guest.hotplug.set_target(MemoryTarget { requested_mib: 16 }).unwrap();
    guest.rig.resume(states);
    assert_eq!((guest.mapped(), guest.info()), (vec![0], (16, 32, 0)));
    guest.rig.stop();
    guest.rig.start();
    guest.expect(Request::State(blocks(0, 32)), Response::State(State::Plugged));
    guest.expect(Request::Plug(blocks(32, 2)), Response::Nack);
    guest.expect(Request::Unplug(blocks(16, 16)), Response::Ack);
    assert_eq!(guest.info(), (16, 16, 1));
}

#[test]
fn a_driver_without_the_feature_is_a_fault() {
    let mut guest = Guest::new(64);
    guest.rig.stop();
    guest.rig.features &= !F_UNPLUGGED_INACCESSIBLE;
    guest.rig.start();
    let interrupt = guest.rig.device.config_interrupt().clone();
    guest.rig.queues[0].add(&[Request::Plug(FIRST).bytes().to_vec()], &[RESPONSE_LEN as u32]);
    guest.rig.queues[0].kick();
    assert_eq!(guest.rig.queues[0].wait_used_unless(|| interrupt.is_reset_needed()), None);
    assert_eq!(guest.info(), (64, 0, 0));
}

#[test]
fn a_request_without_room_for_the_answer_has_no_effect() {
    let mut guest = Guest::new(64);
    guest.rig.queues[0].add(&[Request::Plug(FIRST).bytes().to_vec()], &[RESPONSE_LEN as u32 - 1]);
    guest.rig.queues[0].kick();
    let interrupt = guest.rig.device.config_interrupt().clone();
    assert_eq!(guest.rig.queues[0].wait_used_unless(|| interrupt.is_reset_needed()), None);
    assert_eq!(guest.info(), (64, 0, 0));
}

#[test]
fn the_presence_of_a_driver_is_reported() {
    let guest = Guest::new(64);
    let interrupt = guest.rig.device.config_interrupt();
    assert!(!guest.hotplug.info().driver);
    interrupt.connect(Some(Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap())));
    assert!(guest.hotplug.info().driver);
    interrupt.fault("mem", &"a test");
    assert!(!guest.hotplug.info().driver);
    interrupt.reset();
    let size_mib = REGION_MIB as u32;
    assert_eq!(guest.hotplug.info(), MemoryInfo { size_mib, requested_mib: 64, ..MemoryInfo::default() });
}

#[test]
fn ordinary_memory_is_not_plugged() {
    let ram = GuestRam::from_ranges(&[(0, 4096)]);
    let config = HotplugConfig { size_mib: 128, requested_mib: 0 };
    let region = vm_memory::GuestMemory::iter(&ram).next().unwrap();
    assert!(matches!(new(&config, region, Arc::<FakeSlots>::default()), Err(Error::NotPluggable(0))));
}
