//! MSI-X.

use super::*;

fn pending(guest: &Guest) -> u64 {
    u64::from_le_bytes(guest.read(PENDING))
}

#[test]
fn a_vector_is_connected_while_it_is_enabled_and_unmasked() {
    let guest = Guest::rng();
    let msi = |data| Msi { address: 0xFEE0_0000, data };
    let control = guest.capability(0x11, 0) + 2;
    assert_eq!(guest.read32(TABLE + 12), 1, "masked at first");
    guest.open_vectors();
    assert_eq!(guest.hypervisor.routes(), [(0, msi(0)), (1, msi(1))]);
    guest.write32(TABLE + 16 + 12, 1);
    assert_eq!(guest.hypervisor.routes(), [(0, msi(0))]);
    guest.write32(TABLE + 16 + 8, 77);
    guest.write32(TABLE + 16 + 12, 0);
    assert_eq!(guest.hypervisor.routes(), [(0, msi(0)), (1, msi(77))]);
    guest.write32(TABLE + 8, 55);
    assert_eq!(guest.hypervisor.routes(), [(0, msi(55)), (1, msi(77))], "moved without a mask");
    guest.set_config(0, control, &0xC000u16.to_le_bytes());
    assert_eq!(guest.hypervisor.routes(), [], "the function is masked");
    // The upper byte alone, and with the rest of its double word.
    guest.set_config(0, control + 1, &[0x80]);
    assert_eq!(guest.hypervisor.routes().len(), 2);
    guest.set_config(0, control - 2, &[0, 0, 0, 0]);
    assert_eq!(guest.hypervisor.routes(), []);
}

#[test]
fn a_masked_interrupt_is_pending_and_sent_later() {
    let mut guest = Guest::rng();
    guest.set_up();
    guest.write32(TABLE + 16 + 12, 1);
    guest.ask(16);
    // The answer has arrived, but not its interrupt.
    while guest.queues[0].device_used_idx() == 0 {
        std::thread::yield_now();
    }
    guest.bus.pause(std::time::Duration::from_secs(20)).unwrap();
    assert_eq!((pending(&guest), pending(&guest)), (2, 2), "looking changes nothing");
    guest.bus.resume();
    guest.write32(TABLE + 16 + 12, 0);
    assert_eq!(pending(&guest), 0);
    assert_eq!(guest.hypervisor.sent(1), 1);
}

#[test]
fn odd_accesses_to_the_table_change_nothing() {
    let guest = Guest::rng();
    guest.open_vectors();
    let before = guest.hypervisor.routes();
    for (at, len) in [(0, 1), (0, 2), (2, 4), (4, 8), (12, 8), (0x400, 4), (0xFF8, 8)] {
        guest.window.write(TABLE + at, &vec![0xFF; len]);
    }
    assert_eq!(guest.hypervisor.routes(), before);
    assert_eq!(guest.read::<8>(TABLE + 4), [0; 8]);
    assert_eq!(guest.read::<8>(TABLE), 0xFEE0_0000u64.to_le_bytes());
    assert_eq!(guest.read::<8>(PENDING + 0xFF8), [0; 8]);
    guest.window.write(PENDING, &[0xFF; 8]);
    assert_eq!(pending(&guest), 0);
}

#[test]
fn each_queue_has_its_doorbell() {
    let guest = Guest::rng();
    let addresses: Vec<u64> = guest.hypervisor.state.lock().unwrap().doorbells.keys().copied().collect();
    assert_eq!(addresses, [WINDOW.start + NOTIFY]);
}
