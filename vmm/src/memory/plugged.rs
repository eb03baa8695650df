//! Which blocks of the hotplug region are plugged: one map for the device that plugs, for the guest's processors
//! (memory slots) and for every device that reads or writes guest memory.
//!
//! Positions are bytes from the region's beginning. One thread writes, the others read. A range is plugged as a whole
//! before any reader sees it. A reader that still uses a range during its unplug can still access the memory.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that are plugged at once: a huge page of the host.
pub(crate) const BLOCK: u64 = 2 << 20;
/// A granule has one memory slot, which exists while any of its blocks is plugged. Its size is at least the amount that
/// Linux adds at once, and large enough that [`GRANULES_MAX`] granules suffice.
const GRANULE_MIN: u64 = 128 << 20;
/// The most memory slots the region takes.
const GRANULES_MAX: u64 = 512;

/// Which blocks are plugged.
#[derive(Debug)]
pub(crate) struct Plugged {
    size: u64,
    granule: u64,
    /// A bit for each block.
    words: Vec<AtomicU64>,
    bytes: AtomicU64,
}

impl Plugged {
    /// A region of `size` bytes, a multiple of [`BLOCK`], of which nothing is plugged.
    pub(crate) fn new(size: u64) -> Self {
        let granule = size.div_ceil(GRANULES_MAX).next_power_of_two().max(GRANULE_MIN);
        let words = (size / BLOCK).div_ceil(64);
        Self { size, granule, words: (0..words).map(|_| AtomicU64::new(0)).collect(), bytes: AtomicU64::new(0) }
    }

    /// The size of the region in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The size of a granule in bytes; the last one may be shorter.
    pub(crate) fn granule(&self) -> u64 {
        self.granule
    }

    pub(crate) fn granules(&self) -> usize {
        self.size.div_ceil(self.granule) as usize
    }

    /// The range of granule `index`.
    pub(crate) fn granule_range(&self, index: usize) -> Range<u64> {
        let start = index as u64 * self.granule;
        start..(start + self.granule).min(self.size)
    }

    /// The granules `range` touches.
    pub(crate) fn granules_of(&self, range: &Range<u64>) -> Range<usize> {
        (range.start / self.granule) as usize..range.end.div_ceil(self.granule) as usize
    }

    /// Whether any block of granule `index` is plugged.
    pub(crate) fn is_active(&self, index: usize) -> bool {
        self.plugged_in(&self.granule_range(index)) > 0
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// The number of plugged bytes in the blocks that `range` touches.
    pub(crate) fn plugged_in(&self, range: &Range<u64>) -> u64 {
        let bits = |(at, mask): (usize, u64)| self.words.get(at).map_or(0, |word| word.load(Ordering::Acquire) & mask);
        words(range).map(|word| u64::from(bits(word).count_ones()) * BLOCK).sum()
    }

    /// Whether all of `range` is plugged.
    pub(crate) fn is_plugged(&self, range: &Range<u64>) -> bool {
        self.plugged_in(range) == range.end.next_multiple_of(BLOCK) - range.start / BLOCK * BLOCK
    }

    /// Plugs or unplugs the blocks of `range`, which lies in the region.
    pub(crate) fn set(&self, range: &Range<u64>, plugged: bool) {
        let before = self.plugged_in(range);
        for (at, mask) in words(range) {
            match plugged {
                true => self.words[at].fetch_or(mask, Ordering::AcqRel),
                false => self.words[at].fetch_and(!mask, Ordering::AcqRel),
            };
        }
        // One writer: no other thread changes the sum between these two.
        self.bytes.store(self.bytes() + self.plugged_in(range) - before, Ordering::Release);
    }
}

/// The words that hold the bits of the blocks that `range` touches, each with the mask of these bits.
fn words(range: &Range<u64>) -> impl Iterator<Item = (usize, u64)> + use<> {
    let (first, end) = (range.start / BLOCK, range.end.div_ceil(BLOCK));
    (first / 64..end.div_ceil(64)).filter_map(move |word| {
        let from = first.saturating_sub(word * 64);
        let to = (end - word * 64).min(64);
        (from < to).then(|| (word as usize, u64::MAX >> (64 - (to - from)) << from))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn granules_are_few_and_cover_the_region() {
        for (size, granule, granules) in [
            (128 * MIB, 128 * MIB, 1),
            (384 * MIB, 128 * MIB, 3),
            (64 * GIB, 128 * MIB, 512),
            (64 * GIB + 128 * MIB, 256 * MIB, 257),
            (1 << 40, 2 * GIB, 512),
        ] {
            let map = Plugged::new(size);
            assert_eq!((map.granule(), map.granules()), (granule, granules), "{size:#x}");
            let ends = (0..granules).map(|index| map.granule_range(index));
            assert_eq!(ends.fold(0, |end, range| if range.start == end { range.end } else { 0 }), size);
        }
    }

    #[test]
    fn a_range_is_plugged_when_all_blocks_it_touches_are() {
        let map = Plugged::new(256 * MIB);
        map.set(&(126 * MIB..132 * MIB), true);
        for (range, plugged) in [
            (126 * MIB..132 * MIB, true),
            (126 * MIB + 1..126 * MIB + 2, true),
            (128 * MIB - 1..128 * MIB + 1, true),
            (126 * MIB - 1..127 * MIB, false),
            (131 * MIB..132 * MIB + 1, false),
            (0..1, false),
            (256 * MIB..257 * MIB, false),
            (0..256 * MIB, false),
        ] {
            assert_eq!(map.is_plugged(&range), plugged, "{range:x?}");
        }
        assert!(map.is_active(0) && map.is_active(1));
        map.set(&(0..128 * MIB), false);
        assert!(!map.is_active(0) && map.is_active(1));
        assert_eq!(map.bytes(), 4 * MIB);
    }

    proptest! {
        /// After any plugging and unplugging, every view of the map matches a plain list of blocks.
        #[test]
        fn the_map_is_a_list_of_blocks(
            steps in proptest::collection::vec((0..192u64, 0..192u64, any::<bool>()), 0..40),
            asked in (0..192u64, 0..192u64),
        ) {
            let map = Plugged::new(192 * BLOCK);
            let mut blocks = [false; 192];
            let range = |a: u64, b: u64| a.min(b)..a.max(b) + 1;
            for (a, b, plugged) in steps {
                let range = range(a, b);
                map.set(&(range.start * BLOCK..range.end * BLOCK), plugged);
                blocks[range.start as usize..range.end as usize].fill(plugged);
            }
            let count = |range: &Range<u64>| {
                blocks[range.start as usize..range.end as usize].iter().filter(|plugged| **plugged).count() as u64
            };
            let asked = range(asked.0, asked.1);
            let bytes = asked.start * BLOCK..asked.end * BLOCK;
            prop_assert_eq!(map.bytes(), count(&(0..192)) * BLOCK);
            prop_assert_eq!(map.plugged_in(&bytes), count(&asked) * BLOCK);
            prop_assert_eq!(map.is_plugged(&bytes), count(&asked) == asked.end - asked.start);
            let granule = |index: u64| index * 64..(index + 1) * 64;
            prop_assert!((0..3).all(|index| map.is_active(index as usize) == (count(&granule(index)) > 0)));
        }
    }
}
