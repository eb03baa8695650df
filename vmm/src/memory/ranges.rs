//! Ranges of guest memory, in bytes: joins them, and reduces them to whole pages that the host can release. Pure.

use std::ops::Range;

use super::PAGE;

/// Joins ranges that touch or overlap. Empty ones disappear.
pub(crate) fn coalesce(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// The part of `range` that lies in `region`, cut inwards to whole pages; empty when there is none.
pub(super) fn whole_pages(range: &Range<u64>, region: &Range<u64>) -> Range<u64> {
    // A region ends far below the largest number, so rounding up cannot overflow.
    let start = range.start.clamp(region.start, region.end).next_multiple_of(PAGE as u64);
    let end = range.end.min(region.end) / PAGE as u64 * PAGE as u64;
    start..end.max(start)
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "one range is what is meant")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn cut_inwards_to_whole_pages() {
        for (range, pages) in [
            (0..4096, 0..4096),
            (1..8192, 4096..8192),
            (1..4095, 4096..4096),
            (0..u64::MAX, 0..0x10_0000),
            (0x10_0000..0x20_0000, 0x10_0000..0x10_0000),
            (u64::MAX - 1..u64::MAX, 0x10_0000..0x10_0000),
            (4096..12287, 4096..8192),
        ] {
            assert_eq!(whole_pages(&range, &(0..0x10_0000)), pages, "{range:?}");
        }
    }

    proptest! {
        /// The same bytes, each once, in as few ranges as possible.
        #[test]
        fn joined_ranges_are_the_same_bytes(ranges in proptest::collection::vec((0..60u64, 0..10u64), 0..20)) {
            let ranges: Vec<_> = ranges.into_iter().map(|(start, len)| start..start + len).collect();
            let bytes: BTreeSet<u64> = ranges.iter().cloned().flatten().collect();
            let joined = coalesce(ranges);
            prop_assert_eq!(joined.iter().cloned().flatten().collect::<Vec<_>>(), Vec::from_iter(bytes));
            prop_assert!(joined.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
