//! Notifications in both directions, bounds, and the order in which changes become visible.

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use vm_memory::{Bytes, GuestAddress};

use crate::memory::BLOCK;
use crate::virtio::testing::{DriverQueue, HOTPLUG, ram, ram_and_hotplug};
use crate::virtio::{Fault, QueueState, Ring, Served, check_queue};

const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

fn queue(features: u64) -> (DriverQueue, Ring) {
    let queue = DriverQueue::new(ram(DriverQueue::SPACE), 0, 16);
    let ring = queue.ring(queue.state(), features);
    (queue, ring)
}

fn interrupts(queue: &DriverQueue) -> u64 {
    queue.interrupt.read().unwrap_or(0)
}

fn serve_all(ring: &mut Ring) {
    ring.refill();
    ring.drain(|_| Ok(Served::Used(0))).unwrap();
}

#[test]
fn one_interrupt_for_all_that_one_drain_completes() {
    for features in [0, EVENT_IDX] {
        let (mut queue, mut ring) = queue(features);
        (0..5).for_each(|_| _ = queue.add(&[vec![1]], &[]));
        serve_all(&mut ring);
        assert_eq!(interrupts(&queue), 1);
        assert_eq!(queue.device_used_idx(), 5);
        serve_all(&mut ring);
        assert_eq!(interrupts(&queue), 0, "nothing new, no interrupt");
    }
}

#[test]
fn the_no_interrupt_flag_is_honored_without_event_idx() {
    let (mut queue, mut ring) = queue(0);
    queue.mem.write_obj(VRING_AVAIL_F_NO_INTERRUPT as u16, GuestAddress(queue.avail_ring())).unwrap();
    queue.add(&[vec![1]], &[]);
    serve_all(&mut ring);
    assert_eq!((interrupts(&queue), queue.device_used_idx()), (0, 1));
}

#[test]
fn event_idx_asks_for_an_interrupt_also_around_the_wrap() {
    // (index so far, index the driver waits for, completions, whether these wake the driver)
    for (start, used_event, count, wakes) in [
        (0u16, 0u16, 1u16, true),
        (0, 1, 1, false),
        (0, 1, 2, true),
        (0, 4, 5, true),
        (0, 5, 5, false),
        (3, 0, 5, false), // it waits for one long past: no
        (65534, 65535, 1, false),
        (65534, 65535, 2, true),
        (65534, 0, 3, true),
        (65534, 1, 3, false),
        (0, 65535, 3, false),
    ] {
        let (mut queue, _) = queue(0);
        let state = QueueState { next_avail: start, next_used: start, ..queue.state() };
        queue.set_avail_idx(start);
        let mut ring = queue.ring(state, EVENT_IDX);
        (0..count).for_each(|_| _ = queue.add(&[vec![1]], &[]));
        let at = queue.avail_ring() + 4 + 2 * u64::from(queue.size);
        queue.mem.write_obj(used_event, GuestAddress(at)).unwrap();
        serve_all(&mut ring);
        assert_eq!(interrupts(&queue) > 0, wakes, "{start} {used_event} {count}");
    }
}

#[test]
fn kicks_are_asked_for_only_when_the_ring_is_empty() {
    let flags = |queue: &DriverQueue| queue.mem.read_obj::<u16>(GuestAddress(queue.used_ring())).unwrap();
    let (mut queue, mut ring) = queue(0);
    queue.add(&[vec![1]], &[]);
    queue.add(&[vec![1]], &[]);
    ring.refill();
    let first = ring.take().unwrap().unwrap();
    assert_eq!(u32::from(flags(&queue)), VRING_USED_F_NO_NOTIFY);
    let second = ring.take().unwrap().unwrap();
    assert!(ring.take().unwrap().is_none());
    assert_eq!(flags(&queue), 0);
    ring.complete(second.head(), 0).unwrap();
    ring.complete(first.head(), 0).unwrap();
}

#[test]
fn avail_event_follows_what_was_taken() {
    let (mut queue, mut ring) = queue(EVENT_IDX);
    let at = queue.used_ring() + 4 + 8 * u64::from(queue.size);
    for taken in 1..=3u16 {
        queue.add(&[vec![1]], &[]);
        serve_all(&mut ring);
        assert_eq!(queue.mem.read_obj::<u16>(GuestAddress(at)).unwrap(), taken);
    }
}

#[test]
fn one_call_yields_one_ring_at_most_and_then_kicks_itself() {
    let (mut queue, mut ring) = queue(EVENT_IDX);
    ring.refill();
    let mut yielded = 0;
    (0..queue.size).for_each(|_| _ = queue.add(&[vec![1]], &[]));
    while let Some(chain) = ring.take().unwrap() {
        ring.complete(chain.head(), 0).unwrap();
        yielded += 1;
        // A driver that never stops.
        queue.used().unwrap();
        queue.add(&[vec![1]], &[]);
        assert!(yielded <= queue.size, "no bound");
    }
    assert_eq!(yielded, queue.size);
    assert_eq!(queue.kick.read().unwrap(), 1, "it comes back by itself");
    ring.refill();
    assert!(ring.take().unwrap().is_some());
}

#[test]
fn own_kicks_are_not_counted() {
    let (mut queue, mut ring) = queue(EVENT_IDX);
    queue.kick();
    queue.kick();
    (0..queue.size).for_each(|_| _ = queue.add(&[vec![1]], &[]));
    serve_all(&mut ring); // budget is spent: one kick of its own
    ring.take_kicks().unwrap();
    let metrics = queue.counters.metrics();
    assert_eq!((metrics.kicks, metrics.chains, metrics.interrupts), (2, u64::from(queue.size), 1));
}

#[test]
fn bytes_are_counted_when_a_chain_is_completed() {
    let (mut queue, mut ring) = queue(0);
    queue.add(&[vec![1; 100]], &[50]);
    ring.refill();
    let chain = ring.take().unwrap().unwrap();
    ring.put_back(chain).unwrap();
    assert_eq!(queue.counters.metrics().bytes, 0);
    ring.drain(|_| Ok(Served::Used(7))).unwrap();
    assert_eq!(queue.counters.metrics().bytes, 107, "what was read, and what was written of 50 bytes");
}

#[test]
fn put_back_is_as_if_never_taken() {
    let (mut queue, mut ring) = queue(EVENT_IDX);
    let heads = [0; 3].map(|_| queue.add(&[], &[8]));
    ring.refill();
    drop(ring.reserve().unwrap().unwrap());
    let chains: Vec<_> = std::iter::from_fn(|| ring.take().unwrap()).collect();
    assert_eq!(chains.iter().map(|chain| chain.head()).collect::<Vec<_>>(), heads);
    assert_eq!(ring.in_flight(), 3);
    for chain in chains.into_iter().rev() {
        ring.put_back(chain).unwrap();
    }
    assert_eq!(ring.in_flight(), 0);
    ring.refill();
    ring.drain(|_| Ok(Served::Stop)).unwrap();
    let permit = ring.reserve().unwrap().unwrap();
    assert_eq!(permit.chain().head(), heads[0]);
    permit.used(8).unwrap();
    assert_eq!(queue.used().unwrap().head, heads[0]);
    assert_eq!(ring.into_state().next_avail, 1);
}

#[test]
fn only_the_last_chain_taken_can_be_put_back() {
    let (mut queue, mut ring) = queue(0);
    queue.add(&[], &[8]);
    queue.add(&[], &[8]);
    let first = ring.take().unwrap().unwrap();
    let _second = ring.take().unwrap().unwrap();
    assert!(matches!(ring.put_back(first), Err(Fault::Bug(_))));
}

#[test]
fn completed_together_is_seen_together() {
    let (mut queue, mut ring) = queue(EVENT_IDX);
    (0..4).for_each(|_| _ = queue.add(&[], &[8]));
    let heads: Vec<_> = std::iter::from_fn(|| ring.take().unwrap()).map(|chain| chain.head()).collect();
    let used: Vec<_> = heads.iter().rev().map(|head| (*head, u32::from(*head) % 8)).collect();
    ring.complete_all(&used).unwrap();
    ring.signal().unwrap();
    assert_eq!(interrupts(&queue), 1);
    for (head, written) in used {
        let answer = queue.used().unwrap();
        assert_eq!((answer.head, answer.bytes.len()), (head, written as usize));
    }
    assert!(queue.used().is_none());
}

#[test]
fn a_chain_in_flight_is_not_completed_twice() {
    let (mut queue, mut ring) = queue(0);
    let head = queue.add(&[], &[8]);
    ring.take().unwrap().unwrap();
    queue.offer(head);
    assert!(matches!(ring.take(), Err(Fault::Offered(_))));
    assert!(matches!(ring.complete(head, 9), Err(Fault::Bug(_))), "more bytes than it has");
    assert!(matches!(ring.complete(head, 0), Err(Fault::Bug(_))), "completed already");
    assert!(matches!(ring.complete(900, 0), Err(Fault::Bug(_))), "no such chain");
}

#[test]
fn a_queue_lies_in_memory_aligned_and_is_a_power_of_two() {
    let (queue, _) = queue(0);
    let good = queue.state();
    assert!(check_queue(&queue.mem, &good).is_ok());
    let end = DriverQueue::SPACE;
    assert!(
        check_queue(&queue.mem, &QueueState { used_ring: end - 6 - 16 * 8 - 2, ..good }).is_ok(),
        "up to the last byte"
    );
    for bad in [
        QueueState { size: 0, ..good },
        QueueState { size: 3, ..good },
        QueueState { size: 32, ..good },
        QueueState { desc_table: good.desc_table + 8, ..good },
        QueueState { avail_ring: good.avail_ring + 1, ..good },
        QueueState { used_ring: good.used_ring + 2, ..good },
        QueueState { desc_table: 0, ..good },
        QueueState { desc_table: end - 16, ..good },
        QueueState { avail_ring: end - 2, ..good },
        QueueState { used_ring: end, ..good },
        QueueState { used_ring: u64::MAX - 3, ..good },
    ] {
        assert!(check_queue(&queue.mem, &bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_queue_lies_in_plugged_memory() {
    let queue = DriverQueue::new(ram_and_hotplug(DriverQueue::SPACE), 0, 16);
    let good = queue.state();
    let check = |state: &QueueState| check_queue(&queue.mem, state).is_ok();
    let edge = HOTPLUG + BLOCK; // the first block is plugged, the second is not
    for (at, is_good) in [(HOTPLUG, true), (edge - 0x1000, true), (edge - 16, false), (edge, false)] {
        assert_eq!(check(&QueueState { desc_table: at, ..good }), is_good, "{at:#x}");
        assert_eq!(check(&QueueState { avail_ring: at, ..good }), is_good, "{at:#x}");
        assert_eq!(check(&QueueState { used_ring: at, ..good }), is_good, "{at:#x}");
    }
}

#[test]
fn a_ring_that_is_unplugged_under_the_device_is_a_fault() {
    let queue = DriverQueue::new(ram_and_hotplug(DriverQueue::SPACE), 0, 16);
    for state in [
        QueueState { avail_ring: HOTPLUG, ..queue.state() },
        QueueState { used_ring: HOTPLUG, event_idx_enabled: true, ..queue.state() },
    ] {
        let mut ring = queue.ring(state, 0);
        let plugged = queue.mem.hotplug().unwrap().plugged().unwrap();
        plugged.set(&(0..BLOCK), false);
        assert!(matches!(ring.take(), Err(Fault::Ring(_))));
        plugged.set(&(0..BLOCK), true);
    }
}

#[test]
fn entries_that_are_unplugged_under_the_device_are_a_fault() {
    let queue = DriverQueue::new(ram_and_hotplug(DriverQueue::SPACE), 0, 16);
    let plugged = queue.mem.hotplug().unwrap().plugged().unwrap();
    plugged.set(&(0..2 * BLOCK), true);
    // Flags and index at the end of one block, the entries in the next.
    let avail_ring = HOTPLUG + BLOCK - 4;
    let mut ring = queue.ring(QueueState { avail_ring, ..queue.state() }, 0);
    queue.mem.write_obj(1_u16.to_le(), GuestAddress(avail_ring + 2)).unwrap();
    plugged.set(&(BLOCK..2 * BLOCK), false);
    assert!(ring.take().is_err());
}

#[test]
fn a_queue_that_is_not_enabled_yields_nothing() {
    let (mut queue, _) = queue(0);
    let mut ring = queue.ring(QueueState { ready: false, ..queue.state() }, 0);
    queue.add(&[vec![1]], &[]);
    assert!(!ring.enabled() && ring.take().unwrap().is_none());
}
