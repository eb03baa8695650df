use super::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const BASE: u64 = 4 << 30;
const SIZE: u64 = 1 << 30;

/// A region of 8 granules with its first 10 blocks plugged.
fn map() -> Plugged {
    let map = Plugged::new(SIZE);
    map.set(&(0..10 * BLOCK), true);
    map
}

fn blocks(first: u64, count: u16) -> Blocks {
    Blocks { address: BASE + first * BLOCK, count }
}

#[test]
fn every_request_has_its_answer() {
    let range = |first: u64, end: u64| first * BLOCK..end * BLOCK;
    let answer = Plan::Answer;
    let end = SIZE / BLOCK;
    for (request, expected) in [
        (Request::Plug(blocks(10, 3)), Plan::Plug(range(10, 13))),
        (Request::Plug(blocks(64, 118)), Plan::Plug(range(64, 182))), // up to the requested size
        (Request::Plug(blocks(64, 119)), answer(Response::Nack)),
        (Request::Plug(blocks(9, 2)), answer(Response::Error)), // one is plugged
        (Request::Plug(blocks(10, 0)), answer(Response::Error)),
        (Request::Plug(blocks(end - 1, 1)), Plan::Plug(range(end - 1, end))),
        (Request::Plug(blocks(end - 1, 2)), answer(Response::Error)),
        (Request::Plug(blocks(end, 1)), answer(Response::Error)),
        (Request::Plug(Blocks { address: BASE + MIB, count: 1 }), answer(Response::Error)),
        (Request::Plug(Blocks { address: BASE - BLOCK, count: 1 }), answer(Response::Error)),
        (Request::Plug(Blocks { address: 0, count: 1 }), answer(Response::Error)),
        (Request::Plug(Blocks { address: !(BLOCK - 1), count: u16::MAX }), answer(Response::Error)),
        (Request::Unplug(blocks(0, 10)), Plan::Unplug(range(0, 10))),
        (Request::Unplug(blocks(3, 1)), Plan::Unplug(range(3, 4))),
        (Request::Unplug(blocks(9, 2)), answer(Response::Error)), // one is not
        (Request::Unplug(blocks(20, 1)), answer(Response::Error)),
        (Request::Unplug(blocks(0, 0)), answer(Response::Error)),
        (Request::UnplugAll, Plan::Unplug(0..SIZE)),
        (Request::State(blocks(0, 10)), answer(Response::State(State::Plugged))),
        (Request::State(blocks(10, 100)), answer(Response::State(State::Unplugged))),
        (Request::State(blocks(9, 2)), answer(Response::State(State::Mixed))),
        (Request::State(blocks(end, 1)), answer(Response::Error)),
        (Request::Unknown, answer(Response::Error)),
    ] {
        assert_eq!(plan(&request, BASE, &map(), 256 * MIB), expected, "{request:?}");
    }
}

#[test]
fn plugged_memory_above_the_request_does_not_grow() {
    assert_eq!(plan(&Request::Plug(blocks(20, 1)), BASE, &map(), 0), Plan::Answer(Response::Nack));
    assert_eq!(plan(&Request::Unplug(blocks(0, 1)), BASE, &map(), SIZE), Plan::Unplug(0..BLOCK));
}

#[test]
fn blocks_are_not_spread_over_all_granules() {
    let map = Plugged::new(SIZE);
    let requested = 130 * MIB; // needs two granules
    for granule in 0..8 {
        let expected = match granule {
            0..3 => Plan::Plug(granule * 128 * MIB..granule * 128 * MIB + BLOCK),
            _ => Plan::Answer(Response::Busy),
        };
        let plan = plan(&Request::Plug(blocks(granule * 64, 1)), BASE, &map, requested);
        assert_eq!(plan, expected, "granule {granule}");
        if let Plan::Plug(range) = plan {
            map.set(&range, true);
        }
    }
    assert!(matches!(plan(&Request::Plug(blocks(1, 60)), BASE, &map, requested), Plan::Plug(_)), "begun already");
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Ask(Request),
    Allow(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let address = prop_oneof![
        8 => (0..520u64).prop_map(|block| BASE + block * BLOCK),
        1 => any::<u64>(),
        1 => (0..SIZE).prop_map(|offset| BASE + offset),
    ];
    let count = prop_oneof![4 => 0..70u16, 1 => any::<u16>()];
    let blocks = (address, count).prop_map(|(address, count)| Blocks { address, count });
    let request = (0..40u8, blocks).prop_map(|(kind, blocks)| match kind {
        0 => Request::UnplugAll,
        1 => Request::Unknown,
        2..5 => Request::State(blocks),
        5..15 => Request::Unplug(blocks),
        _ => Request::Plug(blocks),
    });
    let allow = (0..=512u64).prop_map(|blocks| Step::Allow(blocks * BLOCK));
    proptest::collection::vec(prop_oneof![5 => request.prop_map(Step::Ask), 1 => allow], 0..60)
}

proptest! {
    /// For any requests: the plugged memory never exceeds the requested size, it is exactly the acknowledged
    /// memory, and a range is only changed as a whole.
    #[test]
    fn no_driver_gets_more_than_is_requested(steps in steps()) {
        let (map, mut requested) = (Plugged::new(SIZE), 0);
        let mut model = vec![false; (SIZE / BLOCK) as usize];
        for step in steps {
            let request = match step {
                Step::Allow(bytes) => { requested = bytes; continue }
                Step::Ask(request) => request,
            };
            let active = |map: &Plugged| (0..map.granules()).filter(|at| map.is_active(*at)).count() as u64;
            let before = (map.bytes(), active(&map));
            let plan = plan(&request, BASE, &map, requested);
            let (range, plugged) = match plan {
                Plan::Answer(_) => continue,
                Plan::Plug(range) => (range, true),
                Plan::Unplug(range) => (range, false),
            };
            let changed = &mut model[(range.start / BLOCK) as usize..(range.end / BLOCK) as usize];
            let partly = matches!(request, Request::UnplugAll);
            prop_assert!(partly || changed.iter().all(|block| *block != plugged));
            changed.fill(plugged);
            map.set(&range, plugged);
            prop_assert_eq!(map.bytes(), model.iter().filter(|block| **block).count() as u64 * BLOCK);
            if plugged {
                prop_assert!(map.bytes() <= requested);
                let most = requested.div_ceil(map.granule()) + 1;
                prop_assert!(active(&map) <= most.max(before.1));
            } else {
                prop_assert!(map.bytes() <= before.0);
            }
        }
    }

    /// A driver that fills a granule before it begins another, as Linux does, is never refused the requested size.
    #[test]
    fn a_driver_that_fills_what_it_has_begun_gets_all(wishes in proptest::collection::vec(0..=512u64, 1..8)) {
        let map = Plugged::new(SIZE);
        for wish in wishes {
            let requested = wish * BLOCK;
            // The driver unplugs anywhere, here every second block; then it plugs partly used granules first.
            for block in (0..512).step_by(2).chain((1..512).step_by(2)) {
                let range = block * BLOCK..(block + 1) * BLOCK;
                if map.bytes() > requested && map.is_plugged(&range) {
                    map.set(&range, false);
                }
            }
            for begun in [true, false] {
                for block in 0..512 {
                    let range = block * BLOCK..(block + 1) * BLOCK;
                    let is_begun = map.is_active((block / 64) as usize);
                    if map.bytes() < requested && map.plugged_in(&range) == 0 && (is_begun || !begun) {
                        let plan = plan(&Request::Plug(blocks(block, 1)), BASE, &map, requested);
                        prop_assert_eq!(plan, Plan::Plug(range.clone()));
                        map.set(&range, true);
                    }
                }
            }
            prop_assert_eq!(map.bytes(), requested);
        }
    }
}
