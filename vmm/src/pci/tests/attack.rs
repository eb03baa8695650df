//! A guest that writes anything anywhere.

use proptest::prelude::*;

use super::*;
use crate::pci::registers::{Live, Registers, Request};
use crate::virtio::testing::panics;

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// What is locked stays locked, whatever is written, until a reset.
    #[test]
    fn locked_registers_stay_locked(
        writes in proptest::collection::vec(
            (0..0x40u64, prop_oneof![Just(1usize), Just(2), Just(4), Just(8)], prop_oneof![0..16u32, any::<u32>()]),
            1..120,
        ),
        valid in any::<bool>(),
    ) {
        let mut registers = Registers::new(VERSION_1 | 0xFF, &[16, 256], 3);
        // Halfway there, or hardly any sequence would get to DRIVER_OK.
        for (at, len, value) in [(0x14, 1, 3), (0x08, 4, 1), (0x0C, 4, 1)] {
            registers.write(at, len, value, |_| valid);
        }
        for (at, len, value) in writes {
            let before = registers.clone();
            let request = registers.write(at, len, value, |_| valid);
            let status = |registers: &Registers| registers.read(0x14, 1, Live::default()) as u8;
            prop_assert_eq!(status(&before) & !status(&registers), 0, "a bit was taken back");
            if status(&before) & FEATURES_OK != 0 {
                prop_assert_eq!(registers.features(), before.features());
            }
            for (queue, was) in registers.queues().iter().zip(before.queues()) {
                prop_assert!(!was.state.ready || queue.state == was.state);
                prop_assert!(!queue.state.ready || valid);
            }
            if before.is_driver_ok() {
                prop_assert_eq!(registers.queues(), before.queues());
                prop_assert_eq!(registers.config_vector(), before.config_vector());
                prop_assert_ne!(request, Request::Start);
            }
            prop_assert_eq!(request == Request::Start, registers.is_driver_ok() && !before.is_driver_ok());
            prop_assert!(registers.features() & !(VERSION_1 | 0xFF) == 0 || status(&registers) & FEATURES_OK == 0);
            if request == Request::Reset {
                registers.reset();
                prop_assert_eq!(&registers, &Registers::new(VERSION_1 | 0xFF, &[16, 256], 3));
            }
        }
    }
}

/// One access by the guest.
#[derive(Clone, Debug)]
enum Access {
    Config { address: u32, offset: u64, data: Vec<u8> },
    ReadConfig { address: u32, offset: u64, len: usize },
    Bar { at: u64, data: Vec<u8> },
    ReadBar { at: u64, len: usize },
    SetUp,
    Ask,
    Pause,
}

fn access() -> impl Strategy<Value = Access> {
    let len = || prop_oneof![Just(1usize), Just(2), Just(4), Just(8)];
    let data = || {
        prop_oneof![
            (0..16u64, len()).prop_map(|(value, len)| value.to_le_bytes()[..len].to_vec()),
            (any::<u64>(), len()).prop_map(|(value, len)| value.to_le_bytes()[..len].to_vec()),
        ]
    };
    let address = || prop_oneof![(0..64u32).prop_map(|register| 1 << 31 | register << 2), any::<u32>()];
    let at = || prop_oneof![6 => 0..0x40u64, 2 => TABLE..TABLE + 64, 1 => NOTIFY..NOTIFY + 32, 1 => 0..WINDOW.end - WINDOW.start];
    // A data port takes what fits: up to 4 bytes from offset 4 on.
    let port = || {
        prop_oneof![
            Just((4u64, 4usize)),
            Just((4, 2)),
            Just((6, 2)),
            Just((5, 1)),
            Just((7, 1)),
            Just((0, 4)),
            Just((3, 1))
        ]
    };
    prop_oneof![
        4 => (address(), port(), any::<u32>()).prop_map(|(address, (offset, len), value)| Access::Config {
            address, offset, data: value.to_le_bytes()[..len].to_vec()
        }),
        1 => (address(), port()).prop_map(|(address, (offset, len))| Access::ReadConfig { address, offset, len }),
        12 => (at(), data()).prop_map(|(at, data)| Access::Bar { at, data }),
        3 => (at(), len()).prop_map(|(at, len)| Access::ReadBar { at, len }),
        1 => Just(Access::SetUp),
        1 => Just(Access::Ask),
        1 => Just(Access::Pause),
    ]
}

fn perform(guest: &mut Guest, access: Access) {
    match access {
        Access::Config { address, offset, data } => {
            guest.ports.write(0, &address.to_le_bytes());
            guest.ports.write(offset, &data);
        }
        Access::ReadConfig { address, offset, len } => {
            guest.ports.write(0, &address.to_le_bytes());
            guest.ports.read(offset, &mut vec![0; len]);
        }
        Access::Bar { at, data } => guest.window.write(at, &data),
        Access::ReadBar { at, len } => guest.window.read(at, &mut vec![0; len]),
        Access::SetUp => guest.set_up(),
        Access::Ask => {
            let _ = guest.queues[0].try_add(&[], &[16]);
            guest.window.write(NOTIFY, &[0, 0]);
        }
        Access::Pause => {
            guest.bus.pause(HUNG).unwrap();
            guest.bus.resume();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Nothing panics, nothing is wired twice, and after a reset the device is as good as new.
    #[test]
    fn any_accesses_leave_a_device_that_can_be_reset(accesses in proptest::collection::vec(access(), 1..60)) {
        let before = panics("rng");
        let mut guest = Guest::rng();
        for access in accesses {
            perform(&mut guest, access);
        }
        guest.set_up();
        guest.ask(8);
        prop_assert_eq!(guest.answer().len(), 8);
        prop_assert_eq!(panics("rng"), before);
    }
}
