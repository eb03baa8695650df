//! Chains, and the cursors over them.

use std::io::{Read, Write};

use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::memory::BLOCK;
use crate::virtio::testing::{DriverQueue, HOTPLUG, INDIRECT, NEXT, WRITE, ram_and_hotplug};
use crate::virtio::{Chain, ChainFault, Fault, RawTable, Ring};

fn queue() -> (DriverQueue, Ring) {
    let queue = DriverQueue::new(ram_and_hotplug(DriverQueue::SPACE), 0, 64);
    let ring = queue.ring(queue.state(), 0);
    (queue, ring)
}

fn take(readable: &[Vec<u8>], writable: &[u32]) -> Chain {
    let (mut queue, mut ring) = queue();
    queue.add(readable, writable);
    ring.take().unwrap().unwrap()
}

fn why(fault: Result<Option<Chain>, Fault>) -> ChainFault {
    match fault {
        Err(Fault::Chain { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_broken_rule_has_its_name() {
    let new = Descriptor::new;
    let at = 0x2_0000;
    for (expected, descriptors) in [
        (ChainFault::ZeroLength, vec![new(at, 0, 0, 0)]),
        (ChainFault::OutsideMemory, vec![new(DriverQueue::SPACE - 1, 2, 0, 0)]),
        (ChainFault::OutsideMemory, vec![new(u64::MAX, 2, 0, 0)]),
        (ChainFault::Unplugged, vec![new(HOTPLUG + BLOCK, 2, 0, 0)]),
        (ChainFault::Unplugged, vec![new(HOTPLUG + BLOCK - 1, 2, WRITE, 0)]),
        (ChainFault::OutsideMemory, vec![new(HOTPLUG + (128 << 20) - 1, 2, 0, 0)]),
        (ChainFault::Empty, vec![new(HOTPLUG + BLOCK, 16, INDIRECT, 0)]),
        (ChainFault::Order, vec![new(at, 1, WRITE | NEXT, 1), new(at, 1, 0, 0)]),
        (ChainFault::Endless, vec![new(at, 1, NEXT, 0)]),
        (ChainFault::Endless, vec![new(at, 1, NEXT, 64)]),
        (ChainFault::Empty, vec![new(at, 0, INDIRECT, 0)]),
        (ChainFault::Empty, vec![new(at, 15, INDIRECT, 0)]),
        (ChainFault::Endless, vec![new(at, 1, NEXT, 1), new(at, 15, INDIRECT, 0)]),
    ] {
        let (mut queue, mut ring) = queue();
        for (index, descriptor) in descriptors.iter().enumerate() {
            queue.write_descriptor(index as u16, *descriptor);
        }
        queue.offer(0);
        assert_eq!(why(ring.take()), expected, "{descriptors:?}");
    }
}

#[test]
fn plugged_memory_is_memory_until_it_is_unplugged() {
    let (mut queue, mut ring) = queue();
    queue.write_descriptor(0, Descriptor::new(HOTPLUG + BLOCK - 8, 8, WRITE, 0));
    queue.offer(0);
    let chain = ring.take().unwrap().unwrap();
    chain.writer().write_obj(&7_u32).unwrap();
    queue.mem.hotplug().unwrap().plugged().unwrap().set(&(0..BLOCK), false);
    let fault = chain.writer().write_obj(&8_u32).unwrap_err();
    assert!(matches!(fault, Fault::Host(_)), "{fault}");
}

#[test]
fn an_indirect_chain_is_as_long_as_the_queue_at_most() {
    for (count, is_good) in [(1, true), (64, true), (65, false), (4096, false)] {
        let (mut queue, mut ring) = queue();
        let table = queue.buffer(3);
        for at in 0..count {
            let flags = if at + 1 < count { NEXT } else { 0 };
            let descriptor = Descriptor::new(queue.buffer(9), 1, flags, at as u16 + 1);
            queue.mem.write_obj(descriptor, GuestAddress(table + 16 * at)).unwrap();
        }
        queue.write_descriptor(5, Descriptor::new(table, 16 * count as u32, INDIRECT, 0));
        queue.offer(5);
        match ring.take() {
            Ok(Some(chain)) => assert_eq!((is_good, u64::from(chain.readable_len())), (true, count)),
            fault => assert_eq!((is_good, why(fault)), (false, ChainFault::TooLong)),
        }
    }
}

#[test]
fn a_taken_chain_does_not_change_with_its_descriptors() {
    let (mut queue, mut ring) = queue();
    let head = queue.add(&[b"abc".to_vec()], &[8]);
    let chain = ring.take().unwrap().unwrap();
    queue.write_descriptor(head, Descriptor::new(u64::MAX, u32::MAX, NEXT, head));
    let mut text = String::new();
    chain.reader().read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), chain.writable_len()), ("abc", 8));

    // The virtio-fs server's view of it does not change either.
    let (_, rest) = chain.reader().split_at(2).unwrap();
    let raw = RawTable::new().unwrap().lay_out(&chain, b"xy", &rest).unwrap();
    let seen: Vec<_> =
        raw.descriptors.map(|descriptor| (descriptor.addr(), descriptor.len(), descriptor.is_write_only())).collect();
    let [(front, 2, false), (data, 1, false), (answer, 8, true)] = seen[..] else { panic!("{seen:?}") };
    assert_eq!((data.0, answer), (chain.readable()[0].addr.0 + 2, chain.writable()[0].addr));
    // The front is our own copy.
    assert!(!chain.mem().address_in_range(front));
    assert_eq!(raw.mem.read_obj::<[u8; 2]>(front).unwrap(), *b"xy");
}

#[test]
fn an_object_that_does_not_fit_is_too_short_and_moves_nothing() {
    let chain = take(&[vec![1, 2], vec![3]], &[3]);
    let mut reader = chain.reader();
    assert!(matches!(reader.read_obj::<u32>(), Err(Fault::Chain { why: ChainFault::TooShort, .. })));
    assert_eq!(reader.read_obj::<[u8; 3]>().unwrap(), [1, 2, 3]);
    let mut writer = chain.writer();
    assert!(matches!(writer.write_obj(&7u32), Err(Fault::Chain { why: ChainFault::TooShort, .. })));
    assert_eq!(writer.written(), 0);
    assert!(writer.skip(4).is_err() && writer.split_at(4).is_err() && writer.skip(3).is_ok());
    assert_eq!((writer.written(), writer.remaining()), (3, 0));
}

#[test]
fn vectored_calls_see_all_pieces_as_one() {
    let chain = take(&[b"one ".to_vec(), b"datagram".to_vec()], &[3, 100]);
    let (left, right) = std::os::unix::net::UnixDatagram::pair().unwrap();
    left.send(b"one datagram").unwrap();
    let (_, rest) = chain.writer().split_at(1).unwrap();
    assert_eq!(rest.readv(&right).unwrap(), 12);
    let mut bytes = [0; 12];
    let from = chain.writable();
    chain.mem().read_slice(&mut bytes[..2], GuestAddress(from[0].addr.0 + 1)).unwrap();
    chain.mem().read_slice(&mut bytes[2..], from[1].addr).unwrap();
    assert_eq!(&bytes, b"one datagram");
}

proptest! {
    /// Cursors over any layout behave like cursors over one flat buffer.
    #[test]
    fn cursors_behave_as_one_flat_buffer(
        readable in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 1..8),
        writable in proptest::collection::vec(1..40u32, 1..8),
        steps in proptest::collection::vec(0..50usize, 1..30),
        at in 0..200usize,
    ) {
        let chain = take(&readable, &writable);
        let flat = readable.concat();
        let (mut reader, mut position) = (chain.reader(), 0);
        for step in &steps {
            let mut buf = vec![0; *step];
            let count = reader.read(&mut buf).unwrap();
            prop_assert_eq!(&buf[..count], &flat[position..position + count]);
            prop_assert_eq!(count, (*step).min(flat.len() - position));
            position += count;
            prop_assert_eq!(reader.remaining(), flat.len() - position);
        }
        match chain.reader().split_at(at) {
            Ok((mut front, mut rest)) => {
                let mut halves = (Vec::new(), Vec::new());
                front.read_to_end(&mut halves.0).unwrap();
                rest.read_to_end(&mut halves.1).unwrap();
                prop_assert_eq!((&halves.0[..], &halves.1[..]), flat.split_at(at));
            }
            Err(_) => prop_assert!(at > flat.len()),
        }

        let room = writable.iter().sum::<u32>() as usize;
        let (mut writer, mut written) = (chain.writer(), Vec::<u8>::new());
        for (value, step) in steps.iter().enumerate() {
            let buf = vec![value as u8; *step];
            let count = writer.write(&buf).unwrap();
            written.extend(&buf[..count]);
            prop_assert_eq!(count, (*step).min(room - (written.len() - count)));
            prop_assert_eq!(writer.written() as usize, written.len());
        }
        let mut seen = Vec::new();
        for segment in chain.writable() {
            let mut piece = vec![0; segment.len as usize];
            chain.mem().read_slice(&mut piece, segment.addr).unwrap();
            seen.extend(piece);
        }
        prop_assert_eq!(&seen[..written.len()], &written[..]);
        prop_assert!(seen[written.len()..].iter().all(|byte| *byte == 0));
    }
}
