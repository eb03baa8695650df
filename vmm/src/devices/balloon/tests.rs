use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::conformance::{Request, Subject};
use crate::virtio::testing::{BUFFER, Descriptor, DriverQueue, Rig, WRITE, ram};

const INFLATE: usize = 0;
/// The queue of reports, as Linux numbers it.
const REPORT: usize = 2;

/// Page numbers far beyond the test's memory; the first and the last are equal.
const PFNS: [u8; 12] = [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0x80, 0xFF, 0xFF, 0xFF, 0xFF];

pub(crate) fn subject() -> Subject {
    Subject {
        build: || (Box::new(new(true).unwrap().0), Box::new(())),
        session: vec![
            Request::new(INFLATE, &[&PFNS], &[], |bytes| bytes.is_empty()),
            Request::new(DEFLATE, &[&PFNS], &[], |bytes| bytes.is_empty()),
            Request::new(REPORT, &[], &[8192, 100], |bytes| bytes.is_empty()),
        ],
    }
}

struct Guest {
    rig: Rig,
    reported: Reported,
}

impl Guest {
    fn new() -> Self {
        let (device, reported) = new(true).unwrap();
        let mut rig = Rig::new(Box::new(device));
        rig.start();
        Self { rig, reported }
    }

    fn fill(&self, page: u64) {
        self.rig.mem.write_slice(&[0x5A; BUFFER as usize], GuestAddress(page)).unwrap();
    }

    fn bytes(&self, page: u64) -> [u8; 4096] {
        let mut bytes = [0; 4096];
        self.rig.mem.read_slice(&mut bytes, GuestAddress(page)).unwrap();
        bytes
    }
}

#[test]
fn reported_pages_are_released_and_counted() {
    let mut guest = Guest::new();
    let pages = [0, 1].map(|index| guest.rig.queues[REPORT].buffer(index));
    pages.iter().for_each(|page| guest.fill(*page));
    // The driver's first chain begins at descriptor 1: all of that buffer, and one page of the other.
    assert_eq!(guest.rig.queues[REPORT].add(&[], &[BUFFER, 4096]), 1);
    guest.rig.queues[REPORT].kick();
    assert!(guest.rig.queues[REPORT].wait_used().bytes.is_empty());
    for at in (0..u64::from(BUFFER)).step_by(4096) {
        assert_eq!(guest.bytes(pages[1] + at), [0; 4096]);
        assert_eq!(guest.bytes(pages[0] + at), [if at == 0 { 0 } else { 0x5A }; 4096], "{at}");
    }
    assert_eq!(guest.reported.bytes(), u64::from(BUFFER) + 4096);
}

#[test]
fn a_page_in_the_balloon_stays_the_guests() {
    let mut guest = Guest::new();
    let page = guest.rig.queues[REPORT].buffer(0);
    guest.fill(page);
    guest.rig.queues[INFLATE].add(&[((page / 4096) as u32).to_le_bytes().to_vec()], &[]);
    guest.rig.queues[INFLATE].kick();
    assert!(guest.rig.queues[INFLATE].wait_used().bytes.is_empty());
    assert_eq!((guest.bytes(page), guest.reported.bytes()), ([0x5A; 4096], 0));
}

#[test]
fn reports_that_wait_together_are_released_together() {
    let mut queue = DriverQueue::new(ram(DriverQueue::SPACE), 0, 128);
    let mut ring = queue.ring(queue.state(), 0);
    for _ in 0..3 {
        queue.add(&[], &[4096]);
    }
    assert_eq!(release_all(&mut ring).unwrap(), 3 * 4096);
    assert_eq!((0..4).map_while(|_| queue.used()).count(), 3);
}

#[test]
fn a_guest_may_report_its_own_rings() {
    let mut guest = Guest::new();
    let queue = &mut guest.rig.queues[REPORT];
    queue.write_descriptor(0, Descriptor::new(0, u32::MAX, WRITE, 0));
    queue.offer(0);
    guest.rig.queues[REPORT].kick();
    guest.rig.stop();
    guest.rig.start();
}

#[test]
fn reports_are_in_any_queue_after_deflate() {
    for (queue, features, expected) in [
        (0, F_REPORTING, false),
        (1, F_REPORTING, false),
        (2, F_REPORTING, true),
        (4, F_REPORTING, true),
        (2, 0, false),
    ] {
        assert_eq!(is_reporting(queue, features), expected, "{queue} {features:#x}");
    }
    assert_eq!(Rig::new(Box::new(new(false).unwrap().0)).features & F_REPORTING, 0);
}
