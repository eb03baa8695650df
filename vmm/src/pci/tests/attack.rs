//! A guest that writes arbitrary values to arbitrary registers.

use proptest::prelude::*;

use super::*;
use crate::pci::registers::{Live, Registers, Request};
use crate::virtio::testing::panics;

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// For any writes, locked settings stay locked until a reset.
    #[test]
    fn locked_registers_stay_locked(
        writes in proptest::collection::vec(
            (0..0x40u64, prop_oneof![Just(1usize), Just(2), Just(4), Just(8)], prop_oneof![0..16u32, any::<u32>()]),
            1..120,
        ),
        valid in any::<bool>(),
    ) {
        let mut registers = Registers::new(VERSION_1 | 0xFF, &[16, 256], 3);
        // Some of the steps to DRIVER_OK: hardly any random sequence would get there from the start.
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

#[derive(Clone, Debug)]
enum Access {
    Config { at: u64, data: Vec<u8> },
    ReadConfig { at: u64, len: usize },
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
    let config = || prop_oneof![4 => 0..0x104u64, 1 => 0..32 * DEVICE_SIZE - 8];
    let at = || prop_oneof![6 => 0..0x40u64, 2 => TABLE..TABLE + 64, 1 => NOTIFY..NOTIFY + 32, 1 => 0..WINDOW.end - WINDOW.start];
    prop_oneof![
        4 => (config(), data()).prop_map(|(at, data)| Access::Config { at, data }),
        1 => (config(), len()).prop_map(|(at, len)| Access::ReadConfig { at, len }),
        12 => (at(), data()).prop_map(|(at, data)| Access::Bar { at, data }),
        3 => (at(), len()).prop_map(|(at, len)| Access::ReadBar { at, len }),
        1 => Just(Access::SetUp),
        1 => Just(Access::Ask),
        1 => Just(Access::Pause),
    ]
}

fn perform(guest: &mut Guest, access: Access) {
    match access {
        Access::Config { at, data } => guest.space.write(at, &data),
        Access::ReadConfig { at, len } => guest.space.read(at, &mut vec![0; len]),
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

    /// Nothing panics, nothing is connected twice, and after a reset the device works like a new one.
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
