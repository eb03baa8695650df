//! What a scan of the bus finds.

use super::*;
use crate::pci::{Error, SLOTS};

#[test]
fn a_scan_finds_each_device_once_and_nothing_else() {
    let rng = || Box::new(crate::devices::rng::new().unwrap()) as Box<dyn VirtioDevice>;
    let guest = Guest::new(vec![rng(), rng(), rng()]);
    for slot in 0..32 {
        let id = guest.config(slot, 0, 4);
        assert_eq!(id, if slot < 3 { 0x1044_1AF4 } else { u32::MAX }, "slot {slot}");
    }
    for offset in [0x1000, 0x7000, 3 * DEVICE_SIZE, 31 * DEVICE_SIZE + 0x7FFC] {
        let mut data = [0; 4];
        guest.space.read(offset, &mut data);
        assert_eq!(data, [0xFF; 4], "another function or no device: {offset:#x}");
        guest.space.write(offset, &[0; 4]);
    }
    assert_eq!(guest.config(0, 0x100, 4), 0, "no extended capabilities");
    assert_eq!(guest.hypervisor.state.lock().unwrap().pages.len(), 3);
    // One BAR each, inside the window, apart from each other; no wired interrupt.
    let bars: Vec<u32> = (0..3).map(|slot| guest.config(slot, 0x10, 4)).collect();
    assert_eq!(bars, [0xC000_0000, 0xC000_4000, 0xC000_8000]);
    assert_eq!(guest.config(0, 0x3D, 1), 0);
}

#[test]
fn the_capabilities_name_the_location_of_each_structure() {
    let guest = Guest::rng();
    for (cfg_type, offset, length) in [(1, 0, 0x38), (2, NOTIFY, 4), (3, 0x100, 1), (4, 0x400, 0xC00)] {
        let at = guest.capability(9, cfg_type);
        assert_eq!(guest.config(0, at + 4, 1), 0, "in BAR 0");
        assert_eq!(guest.config(0, at + 8, 4), offset as u32);
        assert_eq!(guest.config(0, at + 12, 4), length);
    }
    assert_eq!(guest.config(0, guest.capability(9, 2) + 16, 4), 4, "notify_off_multiplier");
    let msix = guest.capability(0x11, 0);
    assert_eq!(guest.config(0, msix + 2, 2), 1, "two vectors, off");
    assert_eq!([guest.config(0, msix + 4, 4), guest.config(0, msix + 8, 4)], [TABLE as u32, PENDING as u32]);
}

#[test]
fn a_full_bus_is_an_error() {
    for (window, room) in
        [(WINDOW, SLOTS), (0xC000_0000..0xC000_0000 + 2 * BAR, 2), (0xC000_0001..0xC000_0000 + 2 * BAR, 1)]
    {
        let mut bus = PciBus::new(Arc::new(FakeHypervisor::default()), (*ram(4096)).clone(), window, CONFIG);
        for _ in 0..room {
            bus.add(Box::new(crate::devices::rng::new().unwrap())).unwrap();
        }
        assert!(
            matches!(bus.add(Box::new(crate::devices::rng::new().unwrap())), Err(Error::Full(name)) if name == "rng")
        );
    }
}

#[test]
fn addresses_between_devices_read_as_ones_and_take_nothing() {
    let guest = Guest::rng();
    assert_eq!(guest.read32(BAR), u32::MAX);
    guest.write32(BAR, 7);
    guest.write32(BAR * 1000, 7);
}
