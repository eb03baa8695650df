//! Converts the page numbers from a guest to as few ranges of its memory as possible. Pure.

use std::ops::Range;

use crate::memory::coalesce;

/// The balloon's pages are 4 KiB, whatever the size of the guest's pages (§5.5.6).
pub(super) const PAGE: u64 = 4096;
/// A page number is 32 bits.
pub(super) const PFN_LEN: usize = 4;
/// Page numbers one chain may hold; Linux sends 256.
pub(super) const PFNS_MAX: usize = 4096;

/// The page ranges, in bytes, that the little-endian page numbers in `bytes` name: sorted, disjoint, not adjacent, so
/// repeated and shuffled numbers cost nothing more. A trailing part of a number is ignored.
pub(super) fn coalesce_pfns(bytes: &[u8]) -> Vec<Range<u64>> {
    let pfns = bytes.chunks_exact(PFN_LEN).map(|pfn| u64::from(u32::from_le_bytes([pfn[0], pfn[1], pfn[2], pfn[3]])));
    coalesce(pfns.map(|pfn| pfn * PAGE..(pfn + 1) * PAGE).collect())
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // one range is what is meant
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn bytes(pfns: &[u32]) -> Vec<u8> {
        pfns.iter().flat_map(|pfn| pfn.to_le_bytes()).collect()
    }

    #[test]
    fn neighbours_become_one_range() {
        for (pfns, pages) in [
            (vec![], vec![]),
            (vec![5], vec![5..6]),
            (vec![1, 2, 3], vec![1..4]),
            (vec![3, 2, 1], vec![1..4]),
            (vec![7, 7, 7, 8], vec![7..9]),
            (vec![1, 3, 2, 9], vec![1..4, 9..10]),
            (vec![u32::MAX, 0], vec![0..1, 0xFFFF_FFFF..0x1_0000_0000]),
        ] {
            let ranges: Vec<_> =
                pages.into_iter().map(|range: Range<u64>| range.start * PAGE..range.end * PAGE).collect();
            assert_eq!(coalesce_pfns(&bytes(&pfns)), ranges, "{pfns:?}");
        }
        assert_eq!(coalesce_pfns(&[1, 0, 0]), [], "part of a number");
    }

    proptest! {
        /// Exactly the given pages, each once, in as few ranges as possible.
        #[test]
        fn exactly_the_named_pages(pfns in proptest::collection::vec(prop_oneof![0..64_u32, any::<u32>()], 0..200)) {
            let ranges = coalesce_pfns(&bytes(&pfns));
            let pages: Vec<u64> = ranges.iter().flat_map(|range| range.start / PAGE..range.end / PAGE).collect();
            let named: BTreeSet<u64> = pfns.iter().map(|pfn| u64::from(*pfn)).collect();
            prop_assert_eq!(&pages, &named.into_iter().collect::<Vec<_>>());
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
