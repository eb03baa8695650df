//! From reset to DRIVER_OK and back.

use std::time::Duration;

use super::*;
use crate::pci::StillBusy;
use crate::seccomp::Role;
use crate::virtio::{Backend, ConfigBytes, Device, Fault, Identity, Ring, Served};

#[test]
fn a_driver_that_behaves_is_served_again_and_again() {
    let mut guest = Guest::rng();
    for round in 1..4 {
        guest.set_up();
        for len in [1, 100, 5000] {
            guest.ask(len);
            assert_eq!(guest.answer().len(), len as usize);
        }
        let metrics = guest.bus.metrics()["rng"];
        assert_eq!((metrics.chains, metrics.faults), (3 * round, 0));
    }
}

#[test]
fn after_driver_ok_the_registers_are_locked_until_the_reset() {
    let mut guest = Guest::rng();
    guest.set_up();
    let shown = |guest: &Guest| {
        guest.write16(0x16, 0);
        let words = [0x10, 0x18, 0x1A, 0x1C].map(|at| guest.read16(at));
        (words, [0x20, 0x24, 0x28, 0x2C, 0x30, 0x34, 0x0C].map(|at| guest.read32(at)))
    };
    let before = shown(&guest);
    guest.set_features(VERSION_1);
    [0x10, 0x18, 0x1A].iter().for_each(|at| guest.write16(*at, 8));
    guest.write16(0x1C, 0);
    [0x20, 0x28, 0x30].iter().for_each(|at| guest.write64(*at, 0x1000));
    assert_eq!(shown(&guest), before);
    guest.ask(10);
    assert_eq!(guest.answer().len(), 10);
    guest.set_status(0);
    assert_eq!((guest.status(), guest.read16(0x10), guest.read32(0x20)), (0, 0xFFFF, 0));
}

#[test]
fn an_enabled_queue_is_locked_before_driver_ok() {
    let mut guest = Guest::rng();
    guest.negotiate();
    guest.enable_queue(0);
    let place = guest.read32(0x20);
    guest.write64(0x20, 0x4000);
    guest.write16(0x18, 2);
    guest.write16(0x1C, 0);
    assert_eq!((guest.read32(0x20), guest.read16(0x1C)), (place, 1));
    assert_eq!(guest.read16(0x18), guest.queues[0].size);
}

#[test]
fn features_are_checked_and_then_locked() {
    let guest = Guest::rng();
    for (features, is_good) in
        [(0, false), (guest.offered() & !VERSION_1, false), (guest.offered() | 1 << 50, false), (VERSION_1, true)]
    {
        guest.set_status(0);
        guest.set_status(ACKNOWLEDGE | DRIVER);
        guest.set_features(features);
        guest.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(guest.status() & FEATURES_OK != 0, is_good, "{features:#x}");
    }
    guest.write32(0x08, 0);
    guest.write32(0x0C, 1);
    assert_eq!(guest.read32(0x0C), 0);
}

#[test]
fn steps_are_neither_left_out_nor_taken_back() {
    let guest = Guest::rng();
    guest.set_status(DRIVER_OK);
    assert_eq!(guest.status(), 0);
    guest.set_status(DRIVER | FEATURES_OK | DRIVER_OK);
    assert_eq!(guest.status(), 0);
    guest.set_status(ACKNOWLEDGE);
    guest.set_status(ACKNOWLEDGE | DRIVER);
    guest.set_status(DRIVER | DRIVER_OK);
    guest.set_status(NEEDS_RESET | 0x30);
    assert_eq!(guest.status(), ACKNOWLEDGE | DRIVER);
}

#[test]
fn a_queue_in_a_wrong_place_needs_a_reset_at_once() {
    let mut guest = Guest::rng();
    for (at, value) in [(0x20, 0x1008), (0x28, 0x8001), (0x30, u64::MAX - 3), (0x20, 1 << 40), (0x30, 0)] {
        guest.negotiate();
        guest.write16(0x16, 0);
        guest.write64(0x20, 0x1000);
        guest.write64(0x28, 0x8000);
        guest.write64(0x30, 0xC000);
        guest.write64(at, value);
        guest.write16(0x1C, 1);
        assert_eq!((guest.read16(0x1C), guest.status() & NEEDS_RESET), (0, NEEDS_RESET), "{at:#x} {value:#x}");
        // The device does not start before it is reset.
        guest.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        guest.ask(8);
        guest.bus.pause(HUNG).unwrap();
        assert_eq!(guest.queues[0].device_used_idx(), 0);
        guest.bus.resume();
    }
    assert_eq!(guest.bus.metrics()["rng"].faults, 5);
    guest.set_up();
    guest.ask(8);
    assert_eq!(guest.answer().len(), 8);
}

#[test]
fn missing_queues_and_vectors_read_as_absent() {
    let guest = Guest::rng();
    assert_eq!(guest.read16(0x12), 1);
    for queue in [1, 2, u16::MAX] {
        guest.write16(0x16, queue);
        assert_eq!((guest.read16(0x18), guest.read16(0x1A), guest.read16(0x1C)), (0, 0xFFFF, 0));
        guest.write16(0x1C, 1);
        guest.write64(0x20, 0x1000);
        assert_eq!(guest.read16(0x1C), 0);
    }
    guest.write16(0x10, 2);
    assert_eq!(guest.read16(0x10), 0xFFFF);
    guest.write16(0x10, 1);
    assert_eq!(guest.read16(0x10), 1);
}

#[test]
fn a_fault_raises_the_configuration_interrupt() {
    let mut guest = Guest::rng();
    guest.set_up();
    guest.queues[0].offer(u16::MAX);
    guest.window.write(NOTIFY, &[0, 0]);
    let event = guest.hypervisor.event(0);
    guest.queues[0].interrupt = Arc::new(event);
    let bus = guest.bus.clone();
    assert_eq!(guest.queues[0].wait_used_unless(|| bus.metrics()["rng"].faults == 1), None);
    while guest.status() & NEEDS_RESET == 0 {
        std::thread::yield_now();
    }
    // Until the reset no request is served, not even after a pause.
    guest.bus.pause(HUNG).unwrap();
    guest.bus.resume();
    assert_ne!(guest.status() & NEEDS_RESET, 0);
    guest.set_up();
    guest.ask(8);
    assert_eq!(guest.answer().len(), 8);
}

#[test]
fn a_pause_holds_everything_and_a_resume_continues() {
    let mut guest = Guest::rng();
    guest.set_up();
    guest.ask(8);
    assert_eq!(guest.answer().len(), 8);
    for _ in 0..3 {
        guest.bus.pause(HUNG).unwrap();
        guest.bus.pause(HUNG).unwrap();
        let used = guest.queues[0].device_used_idx();
        guest.ask(9);
        assert_eq!(guest.queues[0].device_used_idx(), used);
        guest.bus.resume();
        assert_eq!(guest.answer().len(), 9);
    }
}

/// Its `stop` takes as long as the test needs: it raises `stopping`, then waits for `release`.
struct Slow {
    stopping: Arc<EventFd>,
    release: Arc<EventFd>,
}

impl Backend for Slow {
    fn kicked(&mut self, queue: usize, rings: &mut [Ring]) -> Result<(), Fault> {
        rings[queue].drain(|chain| Ok(Served::Used(chain.writable_len())))
    }
    fn stop(&mut self, _: &mut [Ring]) -> Result<(), Fault> {
        self.stopping.write(1)?;
        self.release.read()?;
        Ok(())
    }
}

/// A guest with a slow device, and the device's `stopping` and `release`; both block their readers.
fn slow() -> (Guest, Arc<EventFd>, Arc<EventFd>) {
    let [stopping, release] = [(); 2].map(|()| Arc::new(EventFd::new(0).unwrap()));
    let identity = Identity {
        name: "slow".into(),
        device_type: 99,
        features: 0,
        queue_sizes: vec![16],
        config: Arc::new(ConfigBytes(vec![1, 2, 3])),
    };
    let backend = Slow { stopping: stopping.clone(), release: release.clone() };
    let device = Device::new(identity, vec![(backend, 0..1)], Role::Quiet).unwrap();
    (Guest::new(vec![Box::new(device)]), stopping, release)
}

#[test]
fn a_reset_does_not_block_the_guest_and_shows_when_it_is_done() {
    let (mut guest, _, release) = slow();
    guest.set_up();
    guest.set_status(0);
    assert_ne!(guest.status(), 0, "the worker still has the rings");
    guest.set_status(ACKNOWLEDGE);
    guest.write16(0x10, 1);
    assert_eq!(guest.bus.pause(Duration::ZERO), Err(StillBusy("slow".into())), "it could still write to memory");
    release.write(1).unwrap();
    while guest.status() != 0 {
        std::thread::yield_now();
    }
    assert_eq!(guest.read16(0x10), 0xFFFF, "what was written meanwhile is gone");
    guest.set_up();
    guest.ask(8);
    assert_eq!(guest.answer().len(), 8);
    release.write(1).unwrap();
}

#[test]
fn a_device_too_busy_to_pause_continues_when_done() {
    let (mut guest, stopping, release) = slow();
    guest.set_up();
    assert_eq!(guest.bus.pause(Duration::ZERO), Err(StillBusy("slow".into())));
    stopping.read().unwrap();
    assert!(!guest.bus.resume(), "it is still busy");
    assert_eq!(guest.bus.metrics().len(), 1);
    release.write(1).unwrap();
    while !guest.bus.resume() {
        std::thread::yield_now();
    }
    guest.ask(8);
    assert_eq!(guest.answer().len(), 8);
    release.write(1).unwrap();
}

#[test]
fn device_configuration_reads_end_where_it_ends() {
    let (guest, ..) = slow();
    assert_eq!(guest.read::<8>(0x400), [1, 2, 3, 0, 0, 0, 0, 0]);
    assert_eq!(guest.read::<4>(0x402), [3, 0, 0, 0]);
    assert_eq!(guest.read::<4>(0xFFC), [0; 4]);
    guest.window.write(0x400, &[9]);
    assert_eq!(guest.read::<1>(0x400), [1]);
}
