//! The driver's side, for tests: guest memory with a driver's virtqueues in it, and a device started on them.

use std::collections::BTreeMap;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
pub(crate) use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::{Counters, GuestRam, QueueState, Ring, Start, VirtioDevice};
use crate::memory::BLOCK;

/// The size of each queue's rings; one buffer per descriptor follows.
const RINGS: u64 = 0x1_0000;
/// The largest buffer, in bytes.
pub(crate) const BUFFER: u32 = 0x1_0000;
/// The most descriptors of a queue here, to keep guest memory small.
const SIZE_MAX: u16 = 64;
/// No test step takes long: a test that waits this long hangs.
pub(crate) const HUNG: Duration = Duration::from_secs(20);

pub(crate) const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub(crate) const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub(crate) const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// The number of threads of `device` that have panicked so far. A worker's panic is caught and would pass as a fault.
/// From the first call on, a panic prints one line only, because a backtrace needs system calls that a worker's filter
/// forbids.
pub(crate) fn panics(device: &str) -> usize {
    static PANICKED: Mutex<Vec<String>> = Mutex::new(Vec::new());
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let thread = std::thread::current();
            PANICKED.lock().unwrap().extend(thread.name().map(str::to_owned));
            eprintln!("{info}");
        }));
    });
    PANICKED.lock().unwrap().iter().filter(|thread| thread.starts_with(device)).count()
}

/// Guest memory of `len` bytes from address 0.
pub(crate) fn ram(len: u64) -> Arc<GuestRam> {
    Arc::new(GuestRam::from_ranges(&[(0, len as usize)]))
}

/// The address of the memory that can be plugged in [`ram_and_hotplug`].
pub(crate) const HOTPLUG: u64 = 1 << 30;

/// Like [`ram`], with 128 MiB of memory that can be plugged; only the first block is plugged.
pub(crate) fn ram_and_hotplug(len: u64) -> Arc<GuestRam> {
    let ram = ram(len).with_hotplug_at(HOTPLUG, 128 << 20);
    ram.hotplug().unwrap().plugged().unwrap().set(&(0..BLOCK), true);
    Arc::new(ram)
}

/// A driver's end of one virtqueue.
pub(crate) struct DriverQueue {
    pub mem: Arc<GuestRam>,
    pub size: u16,
    pub kick: Arc<EventFd>,
    pub interrupt: Arc<EventFd>,
    pub counters: Arc<Counters>,
    max_size: u16,
    base: u64,
    free: Vec<u16>,
    /// Descriptors of every chain in flight, by head.
    chains: BTreeMap<u16, Vec<u16>>,
    avail_idx: u16,
    used_idx: u16,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub head: u16,
    /// The bytes that the device reports as written.
    pub bytes: Vec<u8>,
}

impl DriverQueue {
    /// The guest memory of one queue, in bytes.
    pub(crate) const SPACE: u64 = RINGS + SIZE_MAX as u64 * BUFFER as u64;

    pub(crate) fn new(mem: Arc<GuestRam>, base: u64, max_size: u16) -> Self {
        let event = || Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).unwrap());
        let size = max_size.min(SIZE_MAX);
        let mut queue = Self {
            mem,
            size,
            kick: event(),
            interrupt: event(),
            counters: Arc::default(),
            max_size,
            base,
            free: Vec::new(),
            chains: BTreeMap::new(),
            avail_idx: 0,
            used_idx: 0,
        };
        queue.reset();
        queue
    }

    /// The state after the driver's reset: empty rings, all descriptors free.
    pub(crate) fn reset(&mut self) {
        self.mem.write_slice(&[0; RINGS as usize], GuestAddress(self.base)).unwrap();
        self.free = (0..self.size).rev().collect();
        self.chains.clear();
        (self.avail_idx, self.used_idx) = (0, 0);
        let _ = (self.kick.read(), self.interrupt.read());
    }

    pub(crate) fn desc_table(&self) -> u64 {
        // Not the first page, because address 0 means "not set up".
        self.base + 0x1000
    }

    pub(crate) fn avail_ring(&self) -> u64 {
        self.base + 0x8000
    }

    pub(crate) fn used_ring(&self) -> u64 {
        self.base + 0xC000
    }

    /// The buffer of descriptor `index`.
    pub(crate) fn buffer(&self, index: u16) -> u64 {
        self.base + RINGS + u64::from(index) * u64::from(BUFFER)
    }

    /// The queue's state as a transport would enable it.
    pub(crate) fn state(&self) -> QueueState {
        QueueState {
            max_size: self.max_size,
            size: self.size,
            ready: true,
            desc_table: self.desc_table(),
            avail_ring: self.avail_ring(),
            used_ring: self.used_ring(),
            ..Default::default()
        }
    }

    /// The device's end.
    pub(crate) fn ring(&self, state: QueueState, features: u64) -> Ring {
        let (kick, interrupt) = (self.kick.clone(), Some(self.interrupt.clone()));
        Ring::new(self.mem.clone(), state, features, kick, interrupt, self.counters.clone()).unwrap()
    }

    pub(crate) fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        let at = self.desc_table() + 16 * u64::from(index);
        self.mem.write_obj(descriptor, GuestAddress(at)).unwrap();
    }

    /// Makes `head` available, even if it is not valid.
    pub(crate) fn offer(&mut self, head: u16) {
        let at = self.avail_ring() + 4 + 2 * u64::from(self.avail_idx % self.size);
        self.mem.write_obj(head, GuestAddress(at)).unwrap();
        self.set_avail_idx(self.avail_idx.wrapping_add(1));
    }

    pub(crate) fn set_avail_idx(&mut self, index: u16) {
        self.avail_idx = index;
        self.mem.store(index, GuestAddress(self.avail_ring() + 2), Ordering::Release).unwrap();
        fence(Ordering::SeqCst);
    }

    /// Offers a chain of `readable` buffers, then `writable` ones of these lengths. Returns `None` if the queue is
    /// full.
    pub(crate) fn try_add(&mut self, readable: &[Vec<u8>], writable: &[u32]) -> Option<u16> {
        let count = readable.len() + writable.len();
        if count == 0 || count > self.free.len() {
            return None;
        }
        let indices = self.free.split_off(self.free.len() - count);
        let lens = readable.iter().map(|bytes| (bytes.len() as u32, 0)).chain(writable.iter().map(|len| (*len, WRITE)));
        for (at, (len, flags)) in lens.enumerate() {
            let index = indices[at];
            if let Some(bytes) = readable.get(at) {
                self.mem.write_slice(bytes, GuestAddress(self.buffer(index))).unwrap();
            }
            let next = indices.get(at + 1);
            let flags = flags | if next.is_some() { NEXT } else { 0 };
            self.write_descriptor(index, Descriptor::new(self.buffer(index), len, flags, next.copied().unwrap_or(0)));
        }
        let head = indices[0];
        self.chains.insert(head, indices);
        self.offer(head);
        Some(head)
    }

    /// Like [`try_add`](Self::try_add), for a queue that is not full.
    pub(crate) fn add(&mut self, readable: &[Vec<u8>], writable: &[u32]) -> u16 {
        self.try_add(readable, writable).expect("the driver's queue is full")
    }

    pub(crate) fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// The number of chains that the device has used since the reset, modulo 65536.
    pub(crate) fn device_used_idx(&self) -> u16 {
        self.mem.load(GuestAddress(self.used_ring() + 2), Ordering::Acquire).unwrap()
    }

    /// Asks for an interrupt at the next completion (EVENT_IDX), then takes the next answer, if there is one.
    pub(crate) fn used(&mut self) -> Option<Answer> {
        let used_event = self.avail_ring() + 4 + 2 * u64::from(self.size);
        self.mem.store(self.used_idx, GuestAddress(used_event), Ordering::Relaxed).unwrap();
        fence(Ordering::SeqCst);
        if self.device_used_idx() == self.used_idx {
            return None;
        }
        let at = self.used_ring() + 4 + 8 * u64::from(self.used_idx % self.size);
        self.used_idx = self.used_idx.wrapping_add(1);
        let [head, len]: [u32; 2] = self.mem.read_obj(GuestAddress(at)).unwrap();
        let chain = self.chains.remove(&(head as u16)).expect("the device used a chain that was not offered");
        let mut bytes = Vec::new();
        for index in &chain {
            let at = GuestAddress(self.desc_table() + 16 * u64::from(*index));
            let descriptor: Descriptor = self.mem.read_obj(at).unwrap();
            if descriptor.is_write_only() {
                let mut buffer = vec![0; descriptor.len() as usize];
                self.mem.read_slice(&mut buffer, descriptor.addr()).unwrap();
                bytes.extend(buffer);
            }
        }
        assert!(len as usize <= bytes.len(), "the device says it wrote {len} bytes into {}", bytes.len());
        bytes.truncate(len as usize);
        self.free.extend(chain);
        Some(Answer { head: head as u16, bytes })
    }

    /// The next answer, or `None` once `gave_up` returns true.
    pub(crate) fn wait_used_unless(&mut self, gave_up: impl Fn() -> bool) -> Option<Answer> {
        let epoll = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, std::os::fd::AsRawFd::as_raw_fd(&*self.interrupt), event).unwrap();
        // Checks regularly, because a fault may occur without an interrupt of this queue.
        for _ in 0..HUNG.as_millis() / 10 {
            if let Some(answer) = self.used() {
                return Some(answer);
            }
            if gave_up() {
                return None;
            }
            let _ = epoll.wait(10, &mut [EpollEvent::default()]);
            let _ = self.interrupt.read();
        }
        panic!("no answer from the device");
    }

    /// The next answer.
    pub(crate) fn wait_used(&mut self) -> Answer {
        self.wait_used_unless(|| false).unwrap()
    }
}

/// A device and a driver.
pub(crate) struct Rig {
    pub device: Box<dyn VirtioDevice>,
    pub mem: Arc<GuestRam>,
    pub queues: Vec<DriverQueue>,
    pub features: u64,
}

impl Rig {
    pub(crate) fn new(device: Box<dyn VirtioDevice>) -> Self {
        let sizes = device.identity().queue_sizes.clone();
        let mem = ram_and_hotplug(DriverQueue::SPACE * sizes.len() as u64);
        let places = (0..).step_by(DriverQueue::SPACE as usize);
        let queues = places.zip(sizes).map(|(base, size)| DriverQueue::new(mem.clone(), base, size)).collect();
        let features = device.identity().features;
        Self { device, mem, queues, features }
    }

    /// Starts the device with a new driver: empty queues, all enabled.
    pub(crate) fn start(&mut self) {
        self.queues.iter_mut().for_each(DriverQueue::reset);
        self.device.config_interrupt().reset();
        let states = self.queues.iter().map(DriverQueue::state).collect();
        self.start_at(states, false);
    }

    /// Resumes the device with `states`.
    pub(crate) fn resume(&mut self, states: Vec<QueueState>) {
        self.start_at(states, true);
    }

    fn start_at(&mut self, states: Vec<QueueState>, resumed: bool) {
        let rings = self.queues.iter().zip(states).map(|(queue, state)| queue.ring(state, self.features)).collect();
        self.device.start(Start { features: self.features, rings, resumed }).unwrap();
    }

    pub(crate) fn stop(&mut self) -> Vec<QueueState> {
        self.device.stop(HUNG).expect("the device does not stop")
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.device.config_interrupt().is_reset_needed()
    }

    pub(crate) fn faults(&self) -> u64 {
        self.device.config_interrupt().counters().metrics().faults
    }
}
