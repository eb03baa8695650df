use garret_api::vmm::{BalloonTarget, GuestMemory};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::conformance::{Request, Subject};
use crate::virtio::testing::{BUFFER, DriverQueue, HUNG, Rig, ram};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// The queue of reports, as Linux numbers it.
const REPORT: usize = 3;

fn config() -> BalloonConfig {
    BalloonConfig { deflate_on_oom: true, free_page_reporting: true, statistics_interval_s: 1 }
}

/// Page numbers far beyond the test's memory; the first and the last are equal.
const PFNS: [u8; 12] = [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0x80, 0xFF, 0xFF, 0xFF, 0xFF];

pub(crate) fn subject() -> Subject {
    Subject {
        build: || (Box::new(new(&config(), 1024).unwrap().0), Box::new(())),
        session: vec![
            Request::new(INFLATE, &[&PFNS], &[], |bytes| bytes.is_empty()),
            Request::new(DEFLATE, &[&PFNS], &[], |bytes| bytes.is_empty()),
            Request::new(REPORT, &[], &[8192, 100], |bytes| bytes.is_empty()),
        ],
    }
}

struct Guest {
    rig: Rig,
    balloon: Balloon,
}

impl Guest {
    fn new() -> Self {
        let (device, balloon) = new(&config(), 1024).unwrap();
        let mut rig = Rig::new(Box::new(device));
        rig.start();
        Self { rig, balloon }
    }

    /// Sends page numbers and waits until the device is done with them.
    fn send_pfns(&mut self, queue: usize, pfns: &[u32]) {
        let bytes = pfns.iter().flat_map(|pfn| pfn.to_le_bytes()).collect();
        self.rig.queues[queue].add(&[bytes], &[]);
        self.rig.queues[queue].kick();
        assert!(self.rig.queues[queue].wait_used().bytes.is_empty());
    }

    /// The address of a page that holds no ring.
    fn page(&self, index: u16) -> u64 {
        self.rig.queues[DEFLATE].buffer(10 + index)
    }

    fn fill(&self, page: u64) {
        self.rig.mem.write_slice(&[0x5A; BUFFER as usize], GuestAddress(page)).unwrap();
    }

    fn bytes(&self, page: u64) -> [u8; 4096] {
        let mut bytes = [0; 4096];
        self.rig.mem.read_slice(&mut bytes, GuestAddress(page)).unwrap();
        bytes
    }

    fn statistics(&mut self, free: u64) {
        let entry = [&4_u16.to_le_bytes()[..], &free.to_le_bytes()].concat();
        self.rig.queues[STATISTICS].add(&[entry], &[]);
        self.rig.queues[STATISTICS].kick();
    }

    fn wait_free(&self, free: u64) {
        let deadline = std::time::Instant::now() + HUNG;
        while self.balloon.info().statistics != Some(GuestMemory { free: Some(free), ..GuestMemory::default() }) {
            assert!(std::time::Instant::now() < deadline, "the statistics did not arrive");
            std::thread::yield_now();
        }
    }
}

#[test]
fn inflated_pages_are_released_and_no_others() {
    let mut guest = Guest::new();
    let page = guest.page(0);
    guest.fill(page);
    let pfn = (page / 4096) as u32;
    guest.send_pfns(INFLATE, &[pfn + 3, pfn + 1, pfn + 1, u32::MAX, pfn + 2]);
    for (at, released) in [(0, false), (1, true), (2, true), (3, true), (4, false)] {
        let expected = if released { [0; 4096] } else { [0x5A; 4096] };
        assert_eq!(guest.bytes(page + at * 4096), expected, "page {at}");
    }
    guest.send_pfns(DEFLATE, &[pfn + 1]);
    guest.fill(page);
    assert_eq!(guest.bytes(page + 4096), [0x5A; 4096], "the guest has it back");
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
    assert_eq!(guest.balloon.info().reported_bytes, u64::from(BUFFER) + 4096);
}

#[test]
fn requests_that_wait_together_are_released_together() {
    let mut queue = DriverQueue::new(ram(DriverQueue::SPACE), 0, 128);
    let mut ring = queue.ring(queue.state(), 0);
    let pfn = (queue.buffer(20) / 4096) as u32;
    for pfns in [[pfn + 1, pfn], [pfn + 1, pfn + 2], [pfn + 4, pfn + 3]] {
        queue.add(&[pfns.iter().flat_map(|pfn| pfn.to_le_bytes()).collect()], &[]);
    }
    // Five pages in a row; one that is named twice counts once, as it can only in one call.
    assert_eq!(release_all(&mut ring, named_pages).unwrap(), 5 * 4096);
    assert_eq!((0..4).map_while(|_| queue.used()).count(), 3);
}

#[test]
fn statistics_are_read_and_asked_for_again() {
    let mut guest = Guest::new();
    guest.statistics(111);
    guest.wait_free(111);
    // The device returns the buffer when it wants new statistics.
    assert!(guest.rig.queues[STATISTICS].wait_used().bytes.is_empty());
    guest.statistics(222);
    guest.wait_free(222);
    // A pause puts the buffer back; a driver that resumes finds the same state as before.
    let states = guest.rig.stop();
    assert_eq!(states[STATISTICS].next_avail, 1);
    guest.rig.resume(states);
    assert!(guest.rig.queues[STATISTICS].wait_used().bytes.is_empty());
    assert!(!guest.rig.is_broken());
}

#[test]
fn a_driver_with_many_statistics_buffers_gets_them_back() {
    let mut guest = Guest::new();
    for free in 0..10 {
        guest.statistics(free);
    }
    guest.wait_free(9);
    for _ in 0..9 {
        guest.rig.queues[STATISTICS].wait_used();
    }
}

#[test]
fn a_target_reaches_the_driver() {
    let guest = Guest::new();
    guest.balloon.set_target(BalloonTarget { target_mib: 512 }).unwrap();
    let mut pages = [0; 4];
    guest.rig.device.identity().config.read(0, &mut pages);
    assert_eq!(u32::from_le_bytes(pages), 512 * 256);
    assert!(guest.balloon.set_target(BalloonTarget { target_mib: 1000 }).is_err());
}

#[test]
fn more_page_numbers_than_the_balloon_takes_are_a_fault() {
    let mut guest = Guest::new();
    guest.rig.queues[INFLATE].add(&[vec![0xFF; PFNS_MAX * PFN_LEN], vec![0xFF]], &[]);
    guest.rig.queues[INFLATE].kick();
    let interrupt = guest.rig.device.config_interrupt().clone();
    assert_eq!(guest.rig.queues[INFLATE].wait_used_unless(|| interrupt.is_reset_needed()), None);
    assert_eq!(guest.rig.faults(), 1);
}

#[test]
fn a_guest_may_give_away_its_own_rings() {
    let mut guest = Guest::new();
    let all: Vec<u32> = (0..DriverQueue::SPACE as u32 / 4096).collect();
    for pages in all.chunks(2048) {
        let bytes = pages.iter().flat_map(|pfn| pfn.to_le_bytes()).collect();
        let _ = guest.rig.queues[INFLATE].try_add(&[bytes], &[]);
        guest.rig.queues[INFLATE].kick();
    }
    guest.rig.stop();
    guest.rig.start();
    guest.send_pfns(DEFLATE, &[1]);
}

#[test]
fn only_what_is_configured_is_offered() {
    let none = BalloonConfig { deflate_on_oom: false, free_page_reporting: false, statistics_interval_s: 0 };
    assert_eq!(features(&none), 0);
    assert_eq!(features(&config()), F_STATS_VQ | F_DEFLATE_ON_OOM | F_REPORTING);
}
