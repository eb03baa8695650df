use super::*;
use proptest::prelude::*;

const DISK: Disk = Disk { sectors: 100, read_only: false, discard: true };

fn ask(kind: u32, sector: u64, shape: Shape, disk: Disk) -> Result<Action, Status> {
    validate(Header { kind: kind.into(), reserved: 0.into(), sector: sector.into() }, shape, disk)
}

fn data(readable: u64, writable: u64) -> Shape {
    Shape { readable, writable, range: None }
}

fn range(sector: u64, sectors: u32, flags: u32) -> Shape {
    let range = Range { sector: sector.into(), sectors: sectors.into(), flags: flags.into() };
    Shape { readable: 16, writable: 0, range: Some(range) }
}

#[test]
fn reads_and_writes_stay_inside_the_disk() {
    for (sector, bytes, expected) in [
        (0, 512, Ok((0, 512))),
        (99, 512, Ok((99 * 512, 512))),
        (0, 100 * 512, Ok((0, 100 * 512))),
        (100, 0, Ok((100 * 512, 0))),
        (100, 512, Err(Status::IoError)),
        (99, 1024, Err(Status::IoError)),
        (u64::MAX, 512, Err(Status::IoError)),
        (u64::MAX / 512 + 1, 512, Err(Status::IoError)),
        (0, 511, Err(Status::IoError)),
        (0, 513, Err(Status::IoError)),
    ] {
        let read = ask(VIRTIO_BLK_T_IN, sector, data(0, bytes), DISK);
        assert_eq!(read, expected.map(|(offset, len)| Action::Read { offset, len }), "read {sector} {bytes}");
        let write = ask(VIRTIO_BLK_T_OUT, sector, data(bytes, 0), DISK);
        assert_eq!(write, expected.map(|(offset, len)| Action::Write { offset, len }), "write {sector} {bytes}");
    }
}

#[test]
fn one_request_carries_a_bounded_amount_of_data() {
    let disk = Disk { sectors: u64::MAX / 512, ..DISK };
    assert!(ask(VIRTIO_BLK_T_IN, 0, data(0, MAX_DATA), disk).is_ok());
    assert_eq!(ask(VIRTIO_BLK_T_IN, 0, data(0, MAX_DATA + 512), disk), Err(Status::IoError));
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let disk = Disk { read_only: true, ..DISK };
    assert_eq!(ask(VIRTIO_BLK_T_OUT, 0, data(512, 0), disk), Err(Status::IoError));
    assert_eq!(ask(VIRTIO_BLK_T_DISCARD, 0, range(0, 1, 0), disk), Err(Status::IoError));
    assert_eq!(ask(VIRTIO_BLK_T_WRITE_ZEROES, 0, range(0, 1, 0), disk), Err(Status::IoError));
    assert!(ask(VIRTIO_BLK_T_IN, 0, data(0, 512), disk).is_ok());
}

#[test]
fn ranges_follow_the_specification() {
    let discard = |shape| ask(VIRTIO_BLK_T_DISCARD, 0, shape, DISK);
    assert_eq!(discard(range(8, 8, 0)), Ok(Action::Punch { offset: 4096, len: 4096 }));
    assert_eq!(discard(range(8, 8, 1)), Err(Status::Unsupported));
    assert_eq!(discard(range(8, 8, 2)), Err(Status::Unsupported));
    assert_eq!(discard(range(8, 0, 0)), Err(Status::IoError));
    assert_eq!(discard(range(99, 2, 0)), Err(Status::IoError));
    assert_eq!(discard(range(u64::MAX, 1, 0)), Err(Status::IoError));
    assert_eq!(discard(range(0, MAX_RANGE_SECTORS + 1, 0)), Err(Status::IoError));
    assert_eq!(discard(data(32, 0)), Err(Status::IoError));
    let zero = |shape| ask(VIRTIO_BLK_T_WRITE_ZEROES, 0, shape, DISK);
    assert_eq!(zero(range(1, 1, 0)), Ok(Action::Zero { offset: 512, len: 512 }));
    assert_eq!(zero(range(1, 1, 1)), Ok(Action::Punch { offset: 512, len: 512 }));
    let without = Disk { discard: false, ..DISK };
    assert_eq!(ask(VIRTIO_BLK_T_DISCARD, 0, range(0, 1, 0), without), Err(Status::Unsupported));
}

#[test]
fn the_serial_number_needs_its_20_bytes() {
    assert_eq!(ask(VIRTIO_BLK_T_GET_ID, 0, data(0, 20), DISK), Ok(Action::Identify));
    assert_eq!(ask(VIRTIO_BLK_T_GET_ID, 0, data(0, 19), DISK), Err(Status::IoError));
}

proptest! {
    /// Every admitted request lies inside the disk, in whole sectors, within the limits, whatever a guest sends.
    #[test]
    fn nothing_outside_the_disk(
        kind in prop_oneof![0..20_u32, any::<u32>()],
        sector in prop_oneof![0..200_u64, any::<u64>()],
        readable in prop_oneof![0..100_000_u64, Just(16_u64)],
        writable in 0..100_000_u64,
        (start, count, flags) in (prop_oneof![0..200_u64, any::<u64>()], any::<u32>(), 0..4_u32),
        one in any::<bool>(),
        read_only in any::<bool>(),
        discard in any::<bool>(),
    ) {
        let shape = Shape { readable, writable, range: one.then(|| range(start, count, flags).range.unwrap()) };
        let disk = Disk { read_only, discard, ..DISK };
        match ask(kind, sector, shape, disk) {
            Ok(Action::Read { offset, len }) => prop_assert!(len == writable && offset + len <= 51200 && len % 512 == 0),
            Ok(action @ Action::Write { offset, len }) => {
                prop_assert!(len == readable && offset + len <= 51200 && len % 512 == 0 && !read_only && action.writes());
            }
            Ok(Action::Punch { offset, len } | Action::Zero { offset, len }) => {
                prop_assert!(offset + len <= 51200 && len > 0 && !read_only && discard);
            }
            Ok(Action::Flush) => prop_assert_eq!(kind, VIRTIO_BLK_T_FLUSH),
            Ok(Action::Identify) => prop_assert!(writable >= 20),
            Err(status) => prop_assert_ne!(status, Status::Ok),
        }
    }
}
