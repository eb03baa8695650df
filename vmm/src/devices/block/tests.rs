use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use garret_api::vmm::{Bucket, RateLimit};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use tempfile::NamedTempFile;
use zerocopy::IntoBytes;

use super::*;
use crate::devices::conformance::{Request, Subject};
use crate::virtio::testing::{Answer, DriverQueue, Rig, ram};
use crate::virtio::{ConfigSpace, VirtioDevice};

const MIB: u64 = 1 << 20;
const OK: u8 = blk::VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = blk::VIRTIO_BLK_S_IOERR as u8;

fn header(kind: u32, sector: u64) -> Vec<u8> {
    Header { kind: kind.into(), reserved: 0.into(), sector: sector.into() }.as_bytes().to_vec()
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    Range { sector: sector.into(), sectors: sectors.into(), flags: flags.into() }.as_bytes().to_vec()
}

fn config(image: &NamedTempFile) -> DiskConfig {
    DiskConfig { id: "data".to_owned(), path: image.path().to_owned(), read_only: false, rate_limit: None }
}

/// An image full of 0x11.
fn image(length: u64) -> NamedTempFile {
    let mut image = NamedTempFile::new().unwrap();
    image.write_all(&vec![0x11; length as usize]).unwrap();
    image.as_file().sync_all().unwrap();
    image
}

pub(crate) fn subject() -> Subject {
    fn build() -> (Box<dyn VirtioDevice>, Box<dyn std::any::Any>) {
        let image = image(MIB);
        (Box::new(new(0, &config(&image)).unwrap()), Box::new(image))
    }
    let (write, read) = (header(blk::VIRTIO_BLK_T_OUT, 3), header(blk::VIRTIO_BLK_T_IN, 3));
    let (flush, identify) = (header(blk::VIRTIO_BLK_T_FLUSH, 0), header(blk::VIRTIO_BLK_T_GET_ID, 0));
    let discard = header(blk::VIRTIO_BLK_T_DISCARD, 0);
    Subject {
        build,
        session: vec![
            Request::new(0, &[&write, &[0xAB; 512]], &[1], |bytes| bytes == [OK]),
            Request::new(0, &[&flush], &[1], |bytes| bytes == [OK]),
            Request::new(0, &[&read], &[512, 1], |bytes| bytes[..512] == [0xAB; 512] && bytes[512] == OK),
            Request::new(0, &[&identify], &[20, 1], |bytes| bytes.starts_with(b"data\0") && bytes[20] == OK),
            Request::new(0, &[&discard, &range(8, 8, 0)], &[1], |bytes| bytes == [OK]),
        ],
    }
}

/// A disk and its driver.
struct Disk {
    rig: Rig,
    image: NamedTempFile,
}

impl Disk {
    fn new(length: u64) -> Self {
        Self::with(image(length), |_| {})
    }

    fn with(image: NamedTempFile, change: impl FnOnce(&mut DiskConfig)) -> Self {
        let mut config = config(&image);
        change(&mut config);
        let mut rig = Rig::new(Box::new(new(0, &config).unwrap()));
        rig.start();
        Self { rig, image }
    }

    fn send(&mut self, readable: &[Vec<u8>], writable: &[u32]) {
        self.rig.queues[0].add(readable, writable);
        self.rig.queues[0].kick();
    }

    fn ask(&mut self, readable: &[Vec<u8>], writable: &[u32]) -> Vec<u8> {
        self.send(readable, writable);
        self.rig.queues[0].wait_used().bytes
    }

    fn write(&mut self, sector: u64, data: Vec<u8>) -> Vec<u8> {
        self.ask(&[header(blk::VIRTIO_BLK_T_OUT, sector), data], &[1])
    }

    /// Returns the data and the status.
    fn read(&mut self, sector: u64, len: u32) -> Vec<u8> {
        self.ask(&[header(blk::VIRTIO_BLK_T_IN, sector)], &[len, 1])
    }

    fn blocks(&self) -> u64 {
        self.image.as_file().sync_all().unwrap();
        self.image.as_file().metadata().unwrap().blocks() * 512
    }

    fn content(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.image.as_file().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }
}

/// Makes the host deny io_uring to this thread and the threads it creates.
fn forbid_io_uring() {
    fail_calls(libc::SYS_io_uring_setup, libc::EPERM);
}

/// Makes this system call fail for this thread and the threads it creates.
fn fail_calls(number: i64, errno: i32) {
    let rules = BTreeMap::from([(number, vec![])]);
    let refuse = SeccompAction::Errno(errno as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, TargetArch::x86_64).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

/// Tests everything a disk does, with any way of access that the host allows.
fn exercise() {
    let mut disk = Disk::new(4 * MIB);
    assert_eq!(disk.write(0, vec![0xAA; 4096]), [OK]);
    assert_eq!(disk.write(8191, vec![0xBB; 512]), [OK]);
    assert_eq!(disk.ask(&[header(blk::VIRTIO_BLK_T_FLUSH, 0)], &[1]), [OK]);
    assert_eq!((disk.content(0, 4096), disk.content(4 * MIB - 512, 512)), (vec![0xAA; 4096], vec![0xBB; 512]));
    let read = disk.read(7, 1024);
    assert_eq!((&read[..512], &read[512..1024], read[1024]), (&[0xAA; 512][..], &[0x11; 512][..], OK));

    let before = disk.blocks();
    let discard = [header(blk::VIRTIO_BLK_T_DISCARD, 0), range(2048, 4096, 0)];
    assert_eq!(disk.ask(&discard, &[1]), [OK]);
    assert!(disk.blocks() <= before - 2 * MIB, "the host file did not shrink: {} of {before}", disk.blocks());
    assert_eq!(disk.content(MIB, 2 << 20), vec![0; 2 << 20]);
    assert_eq!(disk.content(MIB - 1, 1), [0x11]);

    let zero = [header(blk::VIRTIO_BLK_T_WRITE_ZEROES, 0), range(0, 8, 0)];
    let allocated = disk.blocks();
    assert_eq!(disk.ask(&zero, &[1]), [OK]);
    assert_eq!((disk.content(0, 4096), disk.content(4096, 1)), (vec![0; 4096], vec![0x11]));
    assert_eq!(disk.blocks(), allocated, "write-zeroes without unmap keeps the space");
    let unmap = [header(blk::VIRTIO_BLK_T_WRITE_ZEROES, 0), range(0, 8, 1)];
    assert_eq!(disk.ask(&unmap, &[1]), [OK]);
    assert!(disk.blocks() < allocated, "with unmap it gives it back");

    assert_eq!(disk.read(8192, 512)[512], IOERR);
    assert_eq!(disk.write(8191, vec![0; 1024]), [IOERR]);
    assert_eq!(disk.read(u64::MAX, 512)[512], IOERR);
    assert_eq!(disk.write(0, vec![0; 100]), [IOERR]);
    assert_eq!(disk.ask(&[header(99, 0)], &[1]), [blk::VIRTIO_BLK_S_UNSUPP as u8]);
    assert_eq!(disk.image.as_file().metadata().unwrap().len(), 4 * MIB);
}

#[test]
fn it_works_with_io_uring() {
    let image = image(MIB);
    let mut backend = BlockBackend::new(&config(&image)).unwrap();
    backend.prepare().unwrap();
    assert!(backend.uring.is_some(), "this host forbids io_uring (kernel.io_uring_disabled): the test needs it");
    exercise();
}

#[test]
fn it_works_where_the_host_forbids_io_uring() {
    forbid_io_uring();
    let image = image(MIB);
    let mut backend = BlockBackend::new(&config(&image)).unwrap();
    backend.prepare().unwrap();
    assert!(backend.uring.is_none());
    exercise();
}

#[test]
fn many_requests_in_flight_are_all_answered() {
    let mut disk = Disk::new(MIB);
    for sector in 0..20 {
        disk.send(&[header(blk::VIRTIO_BLK_T_OUT, sector * 8), vec![sector as u8; 4096]], &[1]);
    }
    for _ in 0..20 {
        assert_eq!(disk.rig.queues[0].wait_used().bytes, [OK]);
    }
    for sector in 0..20 {
        let read = disk.read(sector * 8, 4096);
        assert_eq!(read[..4096], [sector as u8; 4096]);
    }
}

/// A backend with a ring of the kernel, and a driver that writes one block.
fn writer(image: &NamedTempFile) -> (BlockBackend, DriverQueue, [Ring; 1]) {
    let mut backend = BlockBackend::new(&config(image)).unwrap();
    backend.prepare().unwrap();
    let mut queue = DriverQueue::new(ram(DriverQueue::SPACE), 0, 64);
    let ring = queue.ring(queue.state(), 0);
    queue.add(&[header(blk::VIRTIO_BLK_T_OUT, 0), vec![0xC0; 512]], &[1]);
    (backend, queue, [ring])
}

fn refuse(backend: &mut BlockBackend, errors: &[i32]) {
    backend.uring.as_mut().unwrap().refusals.extend(errors);
}

#[test]
fn transient_refusals_of_io_uring_are_retried() {
    let image = image(MIB);
    let (mut backend, mut queue, mut rings) = writer(&image);
    refuse(&mut backend, &[libc::EAGAIN, libc::EBUSY, libc::EINTR, libc::EAGAIN]);
    backend.kicked(0, &mut rings).unwrap();
    refuse(&mut backend, &[libc::EBUSY, libc::EAGAIN]);
    backend.stop(&mut rings).unwrap();
    assert_eq!(queue.used().unwrap().bytes, [OK]);
}

#[test]
fn at_most_one_flush_is_in_flight() {
    let image = image(MIB);
    let (mut backend, mut queue, mut rings) = writer(&image);
    for _ in 0..3 {
        queue.add(&[header(blk::VIRTIO_BLK_T_FLUSH, 0)], &[1]);
    }
    refuse(&mut backend, &[libc::EFAULT]);
    assert!(backend.kicked(0, &mut rings).is_err());
    assert_eq!(backend.uring.as_ref().unwrap().in_flight(), 2, "the write and one flush");
    backend.stop(&mut rings).unwrap();
    for _ in 0..4 {
        assert_eq!(queue.used().unwrap().bytes, [OK]);
    }
}

#[test]
fn stop_leaves_nothing_in_flight_when_io_uring_fails() {
    let image = image(MIB);
    let (mut backend, mut queue, mut rings) = writer(&image);
    refuse(&mut backend, &[libc::EFAULT]);
    assert!(backend.kicked(0, &mut rings).is_err());
    assert_eq!(backend.uring.as_ref().unwrap().in_flight(), 1);
    refuse(&mut backend, &[libc::EFAULT, libc::EAGAIN, libc::EFAULT]);
    assert!(backend.stop(&mut rings).is_err());
    assert_eq!(backend.uring.as_ref().unwrap().in_flight(), 0);
    assert_eq!(queue.used().unwrap().bytes, [OK]);
}

/// A request in flight when the device stops is finished: it is used or still available, and used data is in the file.
#[test]
fn stop_finishes_what_is_in_flight() {
    for _ in 0..30 {
        let mut disk = Disk::new(MIB);
        let heads: Vec<u16> = (0..20)
            .map(|at| {
                disk.rig.queues[0].add(&[header(blk::VIRTIO_BLK_T_OUT, at * 8), vec![0xC0 + at as u8; 4096]], &[1])
            })
            .collect();
        disk.rig.queues[0].kick();
        let states = disk.rig.stop();
        assert_eq!(states[0].next_avail, states[0].next_used, "nothing is half done");
        while let Some(Answer { head, bytes }) = disk.rig.queues[0].used() {
            assert_eq!(bytes, [OK]);
            let at = heads.iter().position(|sent| *sent == head).unwrap();
            assert_eq!(disk.content(at as u64 * 4096, 4096), vec![0xC0 + at as u8; 4096]);
        }
    }
}

#[test]
fn a_read_only_disk_is_never_written() {
    let mut disk = Disk::with(image(MIB), |config| config.read_only = true);
    let features = disk.rig.device.identity().features;
    assert_ne!(features & 1 << blk::VIRTIO_BLK_F_RO, 0);
    assert_eq!(features & 1 << blk::VIRTIO_BLK_F_DISCARD, 0);
    assert_eq!(disk.write(0, vec![1; 512]), [IOERR]);
    assert_eq!(
        disk.ask(&[header(blk::VIRTIO_BLK_T_DISCARD, 0), range(0, 8, 0)], &[1]),
        [blk::VIRTIO_BLK_S_UNSUPP as u8]
    );
    assert_eq!(disk.ask(&[header(blk::VIRTIO_BLK_T_FLUSH, 0)], &[1]), [OK]);
    assert_eq!(disk.read(0, 512)[..512], [0x11; 512]);
}

#[test]
fn an_image_that_shrinks_meanwhile_is_an_error_for_the_guest() {
    let mut disk = Disk::new(MIB);
    disk.image.as_file().set_len(MIB / 2).unwrap();
    assert_eq!(disk.read(2040, 4096)[4096], IOERR);
    assert_eq!(disk.read(1020, 4096)[4096], IOERR, "half of it is there");
    assert_eq!(disk.read(0, 4096)[4096], OK);
    assert!(!disk.rig.is_broken());
}

#[test]
fn a_flush_that_fails_on_the_host_fails_for_the_guest() {
    forbid_io_uring();
    fail_calls(libc::SYS_fdatasync, libc::ENOSPC);
    let mut disk = Disk::new(MIB);
    assert_eq!(disk.write(0, vec![1; 512]), [OK], "the host has it, if not for good");
    let flush = [header(blk::VIRTIO_BLK_T_FLUSH, 0)];
    assert_eq!((disk.ask(&flush, &[1]), disk.ask(&flush, &[1])), (vec![IOERR], vec![IOERR]));
    assert_eq!(disk.rig.queues[0].counters.short_of_space(), 0);
    assert!(!disk.rig.is_broken());
}

#[test]
fn flushes_and_durable_writes_in_flight_are_all_answered() {
    for writeback in [true, false] {
        let mut disk = Disk::new(MIB);
        disk.rig.device.identity().config.write(32, &[u8::from(writeback)]);
        for sector in 0..12 {
            disk.send(&[header(blk::VIRTIO_BLK_T_OUT, sector * 8), vec![1; 4096]], &[1]);
            disk.send(&[header(blk::VIRTIO_BLK_T_FLUSH, 0)], &[1]);
        }
        for _ in 0..24 {
            assert_eq!(disk.rig.queues[0].wait_used().bytes, [OK]);
        }
        assert!(!disk.rig.is_broken());
    }
}

/// A file system with room for 64 KiB and a disk of 1 MiB on it.
fn disk_on_a_small_host(folder: &Path) -> Disk {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    unshare(CloneFlags::CLONE_NEWNS).expect("this test needs root, for a file system of its own");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    mount(Some("none"), folder, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
    let image = NamedTempFile::new_in(folder).unwrap();
    image.as_file().set_len(MIB).unwrap();
    Disk::with(image, |_| {})
}

#[test]
fn a_write_waits_while_the_host_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let mut disk = disk_on_a_small_host(folder.path());
    assert_eq!(disk.write(0, vec![1; 32768]), [OK]);
    disk.send(&[header(blk::VIRTIO_BLK_T_OUT, 1024), vec![2; 65536]], &[1]);
    // Requests that need no space are served in the meantime.
    assert_eq!(disk.read(0, 32768)[..32768], vec![1; 32768]);
    assert_eq!(disk.ask(&[header(blk::VIRTIO_BLK_T_FLUSH, 0)], &[1]), [OK]);
    assert!(disk.rig.queues[0].used().is_none());
    let counters = disk.rig.queues[0].counters.clone();
    assert!(counters.metrics().host_failures >= 1 && counters.short_of_space() == 1, "{counters:?}");
    // The space that the driver frees is enough.
    assert_eq!(disk.ask(&[header(blk::VIRTIO_BLK_T_DISCARD, 0), range(0, 64, 0)], &[1]), [OK]);
    assert_eq!(disk.rig.queues[0].wait_used().bytes, [OK]);
    assert_eq!(counters.short_of_space(), 0);
    assert_eq!(disk.read(1024, 65536)[..65536], vec![2; 65536]);
    assert!(!disk.rig.is_broken());
}

#[test]
fn a_disk_that_stops_while_the_host_is_full_loses_no_write() {
    let folder = tempfile::tempdir().unwrap();
    let mut disk = disk_on_a_small_host(folder.path());
    let filler = folder.path().join("filler");
    std::fs::write(&filler, vec![1; 65536]).unwrap();
    disk.send(&[header(blk::VIRTIO_BLK_T_OUT, 0), vec![2; 4096]], &[1]);
    disk.send(&[header(blk::VIRTIO_BLK_T_IN, 0)], &[513]);
    disk.rig.queues[0].wait_used();
    let freed = std::thread::spawn({
        let filler = File::options().write(true).open(&filler).unwrap();
        move || {
            std::thread::sleep(Duration::from_millis(100));
            filler.set_len(0).unwrap();
        }
    });
    let states = disk.rig.stop();
    freed.join().unwrap();
    assert_eq!(states[0].next_avail, states[0].next_used, "nothing is half done");
    assert_eq!(disk.rig.queues[0].used().unwrap().bytes, [OK]);
    assert_eq!(disk.content(0, 4096), vec![2; 4096]);
}

/// One request of a driver, in units of 512 bytes on a small disk.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write(u64, u32, u8),
    Discard(u64, u32),
    Zero(u64, u32, bool),
    Restart,
}

/// A disk holds the last written data, in whatever order requests arrive.
#[test]
fn a_disk_holds_what_was_written_last() {
    const SECTORS: u64 = 64;
    let place = (0..SECTORS, 1..32_u32);
    let step = prop_oneof![
        4 => (place.clone(), any::<u8>()).prop_map(|((at, count), byte)| Step::Write(at, count, byte)),
        1 => place.clone().prop_map(|(at, count)| Step::Discard(at, count)),
        1 => (place, any::<bool>()).prop_map(|((at, count), unmap)| Step::Zero(at, count, unmap)),
        1 => Just(Step::Restart),
    ];
    let config = Config { cases: 40, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&proptest::collection::vec(step, 1..20), |steps| {
            let mut disk = Disk::new(SECTORS * 512);
            let mut model = vec![0x11; SECTORS as usize * 512];
            for step in steps {
                let (at, count, byte, status) = match step {
                    Step::Write(at, count, byte) => (at, count, byte, disk.write(at, vec![byte; count as usize * 512])),
                    Step::Discard(at, count) => {
                        let request = [header(blk::VIRTIO_BLK_T_DISCARD, 0), range(at, count, 0)];
                        (at, count, 0, disk.ask(&request, &[1]))
                    }
                    Step::Zero(at, count, unmap) => {
                        let request = [header(blk::VIRTIO_BLK_T_WRITE_ZEROES, 0), range(at, count, unmap.into())];
                        (at, count, 0, disk.ask(&request, &[1]))
                    }
                    Step::Restart => {
                        disk.rig.stop();
                        disk.rig.start();
                        continue;
                    }
                };
                let fits = at + u64::from(count) <= SECTORS;
                prop_assert_eq!(status, [if fits { OK } else { IOERR }]);
                if fits {
                    model[at as usize * 512..][..count as usize * 512].fill(byte);
                }
            }
            prop_assert_eq!(&disk.read(0, SECTORS as u32 * 512)[..model.len()], &model[..]);
            prop_assert_eq!(disk.content(0, model.len()), model);
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_limited_disk_answers_everything_in_the_end() {
    let operations = Some(Bucket { per_second: 200, burst: 2 });
    let mut disk = Disk::with(image(MIB), |config| config.rate_limit = Some(RateLimit { bytes: None, operations }));
    let begin = std::time::Instant::now();
    for sector in 0..12 {
        disk.send(&[header(blk::VIRTIO_BLK_T_OUT, sector), vec![7; 512]], &[1]);
    }
    for _ in 0..12 {
        assert_eq!(disk.rig.queues[0].wait_used().bytes, [OK]);
    }
    // The limit guarantees a shortest duration, so the test can assert it: 10 operations beyond the burst.
    assert!(begin.elapsed() >= std::time::Duration::from_millis(9 * 5), "{:?}", begin.elapsed());
}

#[test]
fn with_the_cache_off_a_write_waits_until_it_is_durable() {
    let image = image(MIB);
    let mut backend = BlockBackend::new(&config(&image)).unwrap();
    let (flush, wce) = (1 << blk::VIRTIO_BLK_F_FLUSH, 1 << blk::VIRTIO_BLK_F_CONFIG_WCE);
    for (negotiated, writeback, expected) in [
        (flush, 1, false),
        (flush | wce, 1, false),
        (flush | wce, 0, true),
        (flush, 0, false), // a driver that did not negotiate the switch cannot have meant it
        (wce, 1, true),
        (0, 1, true),
    ] {
        backend.negotiated = negotiated;
        backend.config.write(32, &[writeback]);
        assert_eq!(backend.writethrough(), expected, "{negotiated:#x} {writeback}");
    }
    drop(backend);

    let mut disk = Disk::with(image, |_| {});
    disk.rig.stop();
    disk.rig.features &= !flush;
    disk.rig.start();
    assert_eq!(disk.write(5, vec![9; 512]), [OK]);
    assert_eq!(disk.content(5 * 512, 512), vec![9; 512]);
}

#[test]
fn a_request_without_room_for_an_answer_is_a_fault() {
    for (readable, writable) in [
        (vec![header(blk::VIRTIO_BLK_T_FLUSH, 0)], vec![]),
        (vec![header(blk::VIRTIO_BLK_T_FLUSH, 0)[..15].to_vec()], vec![1]),
        (vec![], vec![512]),
    ] {
        let mut disk = Disk::new(MIB);
        disk.send(&readable, &writable);
        let interrupt = disk.rig.device.config_interrupt().clone();
        assert_eq!(disk.rig.queues[0].wait_used_unless(|| interrupt.is_reset_needed()), None);
        assert_eq!(disk.rig.faults(), 1);
    }
}
