use std::io::Write;
use std::os::unix::fs::FileExt;

use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress, VolatileMemory};

use super::*;
use crate::devices::conformance::{Request, Subject};
use crate::virtio::VirtioDevice;
use crate::virtio::testing::Rig;

const BASE: u64 = 4 << 30;

pub(crate) fn subject() -> Subject {
    Subject {
        build: || (Box::new(new(BASE, ALIGNMENT).unwrap()), Box::new(())),
        session: vec![
            Request::new(0, &[&FLUSH.to_le_bytes()], &[4], |bytes| bytes == [0; 4]),
            Request::new(0, &[&7_u32.to_le_bytes()], &[4], |bytes| bytes == FAILED.to_le_bytes()),
        ],
    }
}

fn image(length: u64) -> NamedTempFile {
    let mut image = NamedTempFile::new().unwrap();
    image.write_all(&vec![0x77; length as usize]).unwrap();
    image
}

#[test]
fn a_write_stays_in_the_mapping_it_was_made_in() {
    let image = image(ALIGNMENT);
    let (mine, other) = (map(image.path()).unwrap(), map(image.path()).unwrap());
    mine.get_slice(4096, 4).unwrap().write_obj(0xDEAD_BEEF_u32, 0).unwrap();
    assert_eq!(mine.get_slice(4096, 4).unwrap().read_obj::<u32>(0).unwrap(), 0xDEAD_BEEF);
    assert_eq!(other.get_slice(4096, 4).unwrap().read_obj::<u32>(0).unwrap(), 0x7777_7777);
    let mut bytes = [0; 4];
    image.as_file().read_exact_at(&mut bytes, 4096).unwrap();
    assert_eq!(bytes, [0x77; 4]);
}

#[test]
fn an_image_the_machine_may_only_read_is_enough() {
    let image = image(ALIGNMENT);
    let mut permissions = image.as_file().metadata().unwrap().permissions();
    permissions.set_readonly(true);
    image.as_file().set_permissions(permissions).unwrap();
    assert_eq!(map(image.path()).unwrap().size() as u64, ALIGNMENT);
}

#[test]
fn a_bad_image_is_one_clear_line() {
    let missing = map(Path::new("/nowhere/root.erofs")).unwrap_err().to_string();
    assert!(missing.starts_with("root image: cannot open /nowhere/root.erofs"), "{missing}");
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(map(folder.path()), Err(Error::NotAFile { .. })));
    for length in [0, 1, ALIGNMENT - 4096, ALIGNMENT + 1] {
        let message = map(image(length).path()).unwrap_err().to_string();
        assert!(message.contains(&format!("{length} bytes")) && !message.contains('\n'), "{message}");
    }
}

#[test]
fn the_guest_can_read_its_address() {
    let device = new(BASE, 3 * ALIGNMENT).unwrap();
    let mut space = [0; 16];
    device.identity().config.read(0, &mut space);
    assert_eq!(space[..8], BASE.to_le_bytes());
    assert_eq!(space[8..], (3 * ALIGNMENT).to_le_bytes());
}

#[test]
fn devices_reach_what_the_guest_maps_from_it() {
    let image = image(ALIGNMENT);
    let ram = crate::memory::ram(1 << 20).unwrap();
    let ram = crate::memory::with_region(&ram, BASE, map(image.path()).unwrap()).unwrap();
    assert_eq!(ram.read_obj::<u16>(GuestAddress(BASE + 100)).unwrap(), 0x7777);
}

#[test]
fn a_flush_without_room_for_the_answer_is_a_fault() {
    let mut rig = Rig::new(Box::new(new(BASE, ALIGNMENT).unwrap()));
    rig.start();
    rig.queues[0].add(&[FLUSH.to_le_bytes().to_vec()], &[3]);
    rig.queues[0].kick();
    let interrupt = rig.device.config_interrupt().clone();
    assert_eq!(rig.queues[0].wait_used_unless(|| interrupt.is_reset_needed()), None);
    assert_eq!(rig.faults(), 1);
}
