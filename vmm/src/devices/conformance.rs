//! The conformance suite: the requirements for every device.
//!
//! A device registers with one line in [`conformance!`] at the end. The line names a function that returns how to build
//! the device and a driver's first requests to it.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueState;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::BLOCK;
use crate::virtio::testing::{Answer, BUFFER, DriverQueue, HOTPLUG, HUNG, INDIRECT, NEXT, Rig, WRITE, panics};
use crate::virtio::{GuestRam, VirtioDevice};

/// A device, and the objects that must exist as long as it (files, sockets, folders).
pub(crate) type Built = (Box<dyn VirtioDevice>, Box<dyn Any>);

/// The suite's input for a device.
pub(crate) struct Subject {
    /// Builds a new device.
    pub build: fn() -> Built,
    /// Requests that a driver that has just started the device may send, in this order. Every request is answered
    /// without any action of the host.
    pub session: Vec<Request>,
}

/// One request and the check of its answer.
pub(crate) struct Request {
    pub queue: usize,
    pub readable: Vec<Vec<u8>>,
    pub writable: Vec<u32>,
    /// Checks the bytes that the device wrote.
    pub is_right: fn(&[u8]) -> bool,
}

impl Request {
    pub(crate) fn new(queue: usize, readable: &[&[u8]], writable: &[u32], is_right: fn(&[u8]) -> bool) -> Self {
        let readable = readable.iter().map(|bytes| bytes.to_vec()).collect();
        Self { queue, readable, writable: writable.to_vec(), is_right }
    }

    fn add_to(&self, rig: &mut Rig) -> Option<u16> {
        let queue = &mut rig.queues[self.queue];
        let head = queue.try_add(&self.readable, &self.writable);
        queue.kick();
        head
    }
}

/// A subject under test. It counts panics on any thread, because a worker's panics are caught and would pass as faults.
struct Trial {
    subject: Subject,
    rig: Rig,
    panics: usize,
    _kept: Box<dyn Any>,
}

impl Trial {
    fn new(subject: Subject) -> Self {
        let (device, kept) = (subject.build)();
        let panics = panics(&device.identity().name);
        Self { subject, rig: Rig::new(device), panics, _kept: kept }
    }

    /// Sends the session's requests one after another, and checks each answer.
    fn run_session(&mut self) {
        for request in &self.subject.session {
            let head = request.add_to(&mut self.rig).unwrap();
            let rig = &mut self.rig;
            let config_interrupt = rig.device.config_interrupt().clone();
            let answer = rig.queues[request.queue].wait_used_unless(|| config_interrupt.is_reset_needed());
            let answer = answer.expect("a fault in place of an answer");
            assert_eq!(answer.head, head);
            assert!((request.is_right)(&answer.bytes), "wrong answer: {:02x?}", answer.bytes);
        }
    }

    /// Asserts that the device still works for a correct driver and that nothing has panicked.
    fn assert_sound(&mut self) {
        self.rig.stop();
        self.rig.start();
        self.run_session();
        assert!(!self.rig.is_broken());
        assert_eq!(self.panics_now(), self.panics, "a worker panicked");
        self.rig.stop();
    }

    fn panics_now(&self) -> usize {
        panics(&self.rig.device.identity().name)
    }

    /// Waits until the device has taken all offered chains or has reported a fault.
    fn settle(&mut self) {
        // A worker that stops has handled all earlier kicks; it takes none of the chains that are left.
        self.rig.stop();
    }

    fn served_queues(&self) -> Vec<usize> {
        let mut queues: Vec<usize> = self.subject.session.iter().map(|request| request.queue).collect();
        queues.sort_unstable();
        queues.dedup();
        queues
    }
}

pub(crate) fn start_stop_start(subject: Subject) {
    let mut trial = Trial::new(subject);
    for round in 0..3 {
        trial.rig.start();
        trial.run_session();
        let states = trial.rig.stop();
        assert_eq!(states.len(), trial.rig.queues.len());
        for queue in trial.served_queues() {
            let sent = trial.subject.session.iter().filter(|request| request.queue == queue).count() as u16;
            assert_eq!(states[queue].next_used, sent, "round {round}, queue {queue}");
        }
    }
    trial.assert_sound();
}

pub(crate) fn stop_when_idle(subject: Subject) {
    let mut trial = Trial::new(subject);
    assert_eq!(trial.rig.stop(), []);
    trial.rig.start();
    assert_eq!(trial.rig.stop().len(), trial.rig.queues.len());
    assert_eq!(trial.rig.stop(), []);
    // A driver that enables no queue.
    let states = trial.rig.queues.iter().map(|queue| QueueState { ready: false, ..queue.state() }).collect();
    trial.rig.resume(states);
    trial.rig.queues.iter().for_each(DriverQueue::kick);
    assert_eq!(trial.rig.stop().len(), trial.rig.queues.len());
    trial.assert_sound();
}

pub(crate) fn without_event_idx(subject: Subject) {
    let mut trial = Trial::new(subject);
    trial.rig.features &= !(1 << VIRTIO_RING_F_EVENT_IDX);
    trial.rig.start();
    trial.run_session();
    trial.assert_sound();
}

/// Chains that break the rules of the ring, as (name, descriptors from index 0 on, head).
fn broken_chains(queue: &DriverQueue) -> Vec<(&'static str, Vec<Descriptor>, u16)> {
    let buffer = queue.buffer(0);
    let new = Descriptor::new;
    let end = DriverQueue::SPACE * 64;
    let loops: Vec<Descriptor> = (0..queue.size).map(|at| new(buffer, 1, NEXT, (at + 1) % queue.size)).collect();
    vec![
        ("head outside the table", vec![], queue.size),
        ("head far outside the table", vec![], u16::MAX),
        ("zero length", vec![new(buffer, 0, WRITE, 0)], 0),
        ("outside memory", vec![new(end, 16, WRITE, 0)], 0),
        ("address overflow", vec![new(u64::MAX - 7, 16, WRITE, 0)], 0),
        ("longer than memory", vec![new(buffer, u32::MAX, WRITE, 0)], 0),
        ("points to itself", vec![new(buffer, 1, NEXT, 0)], 0),
        ("loop", loops, 0),
        ("next outside the table", vec![new(buffer, 1, NEXT, queue.size)], 0),
        ("readable after writable", vec![new(buffer, 1, NEXT | WRITE, 1), new(buffer, 1, 0, 0)], 0),
        ("empty indirect table", vec![new(buffer, 0, INDIRECT, 0)], 0),
        ("indirect table of odd length", vec![new(buffer, 17, INDIRECT, 0)], 0),
        ("indirect table outside memory", vec![new(end, 32, INDIRECT, 0)], 0),
        ("indirect table in itself", vec![new(queue.desc_table(), 16, INDIRECT, 0)], 0),
        ("unplugged", vec![new(HOTPLUG + BLOCK, 16, WRITE, 0)], 0),
        ("partly unplugged", vec![new(HOTPLUG + BLOCK - 8, 16, WRITE, 0)], 0),
        ("unplugged to read", vec![new(HOTPLUG + 2 * BLOCK - 1, 1, 0, 0)], 0),
        ("unplugged behind a good one", vec![new(buffer, 16, NEXT, 1), new(HOTPLUG + BLOCK, 16, WRITE, 0)], 0),
        ("indirect table unplugged", vec![new(HOTPLUG + BLOCK, 32, INDIRECT, 0)], 0),
        ("indirect table as long as can be", vec![new(queue.desc_table(), 0xFFFF0, INDIRECT, 0)], 0),
    ]
}

pub(crate) fn malformed_chains(subject: Subject) {
    let mut trial = Trial::new(subject);
    for queue in 0..trial.rig.queues.len() {
        for (name, descriptors, head) in broken_chains(&trial.rig.queues[queue]) {
            trial.rig.start();
            let faults = trial.rig.faults();
            let driver = &mut trial.rig.queues[queue];
            for (at, descriptor) in descriptors.into_iter().enumerate() {
                driver.write_descriptor(at as u16, descriptor);
            }
            driver.offer(head);
            driver.kick();
            if trial.served_queues().contains(&queue) {
                let interrupt = trial.rig.device.config_interrupt().clone();
                let answer = trial.rig.queues[queue].wait_used_unless(|| interrupt.is_reset_needed());
                assert_eq!(answer, None, "{name} on queue {queue} was served");
                assert_eq!(trial.rig.faults(), faults + 1, "{name} on queue {queue}");
            }
            trial.settle();
        }
        trial.assert_sound();
    }
}

pub(crate) fn impossible_rings(subject: Subject) {
    let mut trial = Trial::new(subject);
    for queue in trial.served_queues() {
        // An index that runs ahead of the ring, and the same chain twice.
        for ahead in [trial.rig.queues[queue].size + 1, u16::MAX] {
            trial.rig.start();
            trial.rig.queues[queue].set_avail_idx(ahead);
            trial.rig.queues[queue].kick();
            let interrupt = trial.rig.device.config_interrupt().clone();
            let answer = trial.rig.queues[queue].wait_used_unless(|| interrupt.is_reset_needed());
            assert_eq!(answer, None);
            trial.rig.stop();
        }
    }
    trial.assert_sound();
}

pub(crate) fn chains_too_small(subject: Subject) {
    let mut trial = Trial::new(subject);
    for at in 0..trial.subject.session.len() {
        let (readable, writable) = {
            let request = &trial.subject.session[at];
            (request.readable.concat(), request.writable.iter().sum::<u32>())
        };
        let cuts = |len: usize| [0, 1, len / 2, len.saturating_sub(1), len].map(|cut| cut.min(len));
        for readable_len in cuts(readable.len()) {
            for writable_len in cuts(writable as usize) {
                // First the whole requests that precede it in the session.
                trial.rig.start();
                let rest = trial.subject.session.split_off(at);
                trial.run_session();
                trial.subject.session.extend(rest);

                let readable: Vec<Vec<u8>> =
                    (readable_len > 0).then(|| readable[..readable_len].to_vec()).into_iter().collect();
                let writable: Vec<u32> = (writable_len > 0).then_some(writable_len as u32).into_iter().collect();
                let queue = &mut trial.rig.queues[trial.subject.session[at].queue];
                if queue.try_add(&readable, &writable).is_some() {
                    queue.kick();
                    let interrupt = trial.rig.device.config_interrupt().clone();
                    // An answer and a fault are both correct; no reaction is not.
                    let _: Option<Answer> = queue.wait_used_unless(|| interrupt.is_reset_needed());
                }
                trial.rig.stop();
            }
        }
    }
    trial.assert_sound();
}

/// A request is the same whatever its division into descriptors (§2.7.4.3).
pub(crate) fn any_descriptor_layout(subject: Subject) {
    let mut trial = Trial::new(subject);
    for piece in [1, 3, 16] {
        trial.rig.start();
        for request in &mut trial.subject.session {
            // As many pieces as the queue holds; the last one of each kind has the rest.
            let room = usize::from(trial.rig.queues[request.queue].size) / 2;
            let bytes = request.readable.concat();
            let mut pieces: Vec<Vec<u8>> = bytes.chunks(piece).map(<[u8]>::to_vec).collect();
            if pieces.len() > room {
                let rest = pieces.split_off(room - 1).concat();
                pieces.push(rest);
            }
            request.readable = pieces;
            let total = request.writable.iter().sum::<u32>();
            let small = (total / piece as u32).min(room as u32 - 1);
            request.writable = vec![piece as u32; small as usize];
            request.writable.extend(Some(total - small * piece as u32).filter(|len| *len > 0));
            assert!(request.writable.iter().all(|len| *len <= BUFFER));
        }
        trial.run_session();
        trial.rig.stop();
    }
    trial.assert_sound();
}

pub(crate) fn reset_under_load(subject: Subject) {
    let mut trial = Trial::new(subject);
    for round in 0..60 {
        trial.rig.start();
        if round % 2 == 0 {
            trial.run_session();
        }
        let mut sent = 0;
        'full: loop {
            for request in &trial.subject.session {
                if sent == 200 || request.add_to(&mut trial.rig).is_none() {
                    break 'full;
                }
                sent += 1;
            }
        }
        let states = trial.rig.stop();
        assert!(!trial.rig.is_broken(), "a good driver, and a fault");
        // After `stop` the device writes nothing more: the rings have the state that the device returned.
        for (queue, state) in trial.rig.queues.iter().zip(&states) {
            assert_eq!(queue.device_used_idx(), state.next_used);
        }
    }
    trial.assert_sound();
}

pub(crate) fn save_and_restore(subject: Subject) {
    let mut trial = Trial::new(subject);
    trial.rig.start();
    trial.run_session();
    for _ in 0..5 {
        let states = trial.rig.stop();
        // Offered while no worker serves the queue. After the pause the worker finds it without a kick.
        let request = trial.subject.session.last().unwrap();
        let queue = &mut trial.rig.queues[request.queue];
        let head = queue.add(&request.readable, &request.writable);
        trial.rig.resume(states);
        let answer = trial.rig.queues[request.queue].wait_used();
        assert_eq!(answer.head, head);
        assert!((request.is_right)(&answer.bytes));
    }
    trial.assert_sound();
}

/// A small deterministic generator, for the mutator thread.
fn scramble(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// Writes plausible invalid data over descriptors, rings and buffers until `stop` is set.
fn mutate(mem: &GuestRam, places: &[(u64, u64)], stop: &AtomicBool) {
    let mut seed = 0x9E37_79B9_7F4A_7C15;
    while !stop.load(Ordering::Relaxed) {
        let (start, len) = places[scramble(&mut seed) as usize % places.len()];
        let at = start + scramble(&mut seed) % (len / 8) * 8;
        let value = match scramble(&mut seed) % 4 {
            0 => scramble(&mut seed) % mem_size(places),
            1 => scramble(&mut seed) & 0x0007_0007_0000_FFFF,
            2 => 0,
            _ => scramble(&mut seed),
        };
        mem.write_obj(value, GuestAddress(at)).unwrap();
    }
}

fn mem_size(places: &[(u64, u64)]) -> u64 {
    places.len() as u64 / 3 * DriverQueue::SPACE
}

pub(crate) fn guest_changes_everything_meanwhile(subject: Subject) {
    let mut trial = Trial::new(subject);
    let places: Vec<(u64, u64)> = trial
        .rig
        .queues
        .iter()
        .flat_map(|queue| [(queue.desc_table(), 1024), (queue.avail_ring(), 144), (queue.buffer(0), 4096)])
        .collect();
    for _ in 0..40 {
        trial.rig.start();
        let stop = Arc::new(AtomicBool::new(false));
        let mutator = {
            let (mem, places, stop) = (trial.rig.mem.clone(), places.clone(), stop.clone());
            std::thread::spawn(move || mutate(&mem, &places, &stop))
        };
        for _ in 0..100 {
            for request in &trial.subject.session {
                let _ = request.add_to(&mut trial.rig);
            }
            if trial.rig.is_broken() {
                break;
            }
        }
        trial.rig.stop();
        stop.store(true, Ordering::Relaxed);
        mutator.join().unwrap();
    }
    trial.assert_sound();
}

pub(crate) fn random_chains(subject: Subject) {
    let trial = std::cell::RefCell::new(Trial::new(subject));
    let (queues, size) = (trial.borrow().rig.queues.len(), DriverQueue::SPACE * trial.borrow().rig.queues.len() as u64);
    let address = prop_oneof![4 => 0..size, 1 => size - 64..size + 64, 1 => any::<u64>()];
    let len = prop_oneof![4 => 0..300u32, 1 => 4000..70_000u32, 1 => any::<u32>()];
    let descriptor = (address, len, 0..8u16, 0..20u16);
    let chain = (0..queues, proptest::collection::vec(descriptor, 1..16), proptest::collection::vec(0..20u16, 1..6));
    let chains = proptest::collection::vec(chain, 1..4);
    TestRunner::new(Config { cases: 150, failure_persistence: None, ..Config::default() })
        .run(&chains, |chains| {
            let mut trial = trial.borrow_mut();
            trial.rig.start();
            for (queue, descriptors, heads) in chains {
                let driver = &mut trial.rig.queues[queue];
                for (at, (addr, len, flags, next)) in descriptors.into_iter().enumerate() {
                    driver.write_descriptor(at as u16, Descriptor::new(addr, len, flags, next));
                }
                heads.into_iter().for_each(|head| driver.offer(head));
                driver.kick();
            }
            trial.rig.device.stop(HUNG).map_err(|busy| TestCaseError::fail(busy.to_string()))?;
            prop_assert_eq!(trial.panics_now(), trial.panics, "a worker panicked");
            Ok(())
        })
        .unwrap();
    let mut trial = trial.into_inner();
    trial.assert_sound();
}

/// Runs this test again in a separate process, because it measures the whole process. Returns true in that process.
fn is_child_process() -> bool {
    const MARK: &str = "GARRET_TEST_ALONE";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let test = std::thread::current().name().expect("the test's thread has its name").to_owned();
    let again =
        std::process::Command::new(std::env::current_exe().unwrap()).args(["--exact", &test]).env(MARK, "1").output();
    let output = again.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    false
}

/// Number of threads, number of descriptors and resident memory of this process.
fn footprint() -> (usize, usize, u64) {
    let count = |path| std::fs::read_dir(path).unwrap().count();
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    (count("/proc/self/task"), count("/proc/self/fd"), pages * 4096)
}

pub(crate) fn bounded_memory(subject: Subject) {
    const GROWTH_MAX: u64 = 4 << 20;
    if !is_child_process() {
        return;
    }
    let mut trial = Trial::new(subject);
    let mut round = |count: usize| {
        for _ in 0..count {
            trial.rig.start();
            for _ in 0..10 {
                trial.run_session();
            }
            // A request that causes a fault.
            let queue = &mut trial.rig.queues[0];
            queue.offer(u16::MAX);
            queue.kick();
            trial.rig.stop();
        }
        footprint()
    };
    // This first touches every page of guest memory that will be used, and fills every pool.
    let before = round(20);
    let after = round(150);
    assert_eq!((before.0, before.1), (after.0, after.1), "threads or descriptors are left behind");
    assert!(after.2 < before.2 + GROWTH_MAX, "resident memory grew from {} to {}", before.2, after.2);
}

/// One module per device, one test per property.
macro_rules! conformance {
    ($($device:ident: $subject:path;)*) => {$(
        mod $device {
            conformance!(@tests $subject: start_stop_start stop_when_idle without_event_idx malformed_chains impossible_rings
                chains_too_small any_descriptor_layout reset_under_load save_and_restore guest_changes_everything_meanwhile
                random_chains bounded_memory);
        }
    )*};
    (@tests $subject:path: $($test:ident)*) => {$(
        #[test]
        fn $test() {
            super::$test($subject());
        }
    )*};
}

conformance! {
    balloon: crate::devices::balloon::tests::subject;
    block: crate::devices::block::tests::subject;
    console: crate::devices::console::tests::subject;
    fs: crate::devices::fs::tests::subject;
    mem: crate::devices::mem::tests::subject;
    net: crate::devices::net::tests::subject;
    pmem: crate::devices::pmem::tests::subject;
    rng: crate::devices::rng::tests::subject;
    vsock: crate::devices::vsock::tests::subject;
}
