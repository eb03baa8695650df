use std::time::Duration;

/// The smallest blocks that free page reporting always returns and that keep the host's huge pages whole: 2 MiB.
const REPORTED_ORDER: usize = 9;
const PAGE: u64 = 4096;
/// Interval between two compactions: usually, and while the host asks for memory.
const INTERVAL: Duration = Duration::from_secs(60);
const INTERVAL_SQUEEZED: Duration = Duration::from_secs(30);
/// The smallest amount of fragmented memory worth a compaction, in bytes and as a fraction of memory.
const FRAGMENTED_MIN: u64 = 8 << 20;
const FRAGMENTED_PART: u64 = 64;

/// When to compact, so that free memory is in blocks large enough to be returned to the host.
#[derive(Debug, Default)]
pub(super) struct Compaction {
    last: Option<Duration>,
    /// The fragmented bytes that the last compaction could not merge.
    residual: u64,
    /// The next check is the first one after a compaction.
    just_compacted: bool,
}

impl Compaction {
    /// Whether a compaction is due: `fragmented` bytes are free in too small blocks, of `total` bytes of memory. The
    /// caller must then compact.
    pub(super) fn due(&mut self, now: Duration, fragmented: u64, total: u64, squeezed: bool) -> bool {
        if std::mem::take(&mut self.just_compacted) {
            self.residual = fragmented;
        }
        self.residual = self.residual.min(fragmented);
        let interval = if squeezed { INTERVAL_SQUEEZED } else { INTERVAL };
        let rested = self.last.is_none_or(|last| now >= last + interval);
        let due = rested && fragmented - self.residual >= FRAGMENTED_MIN.max(total / FRAGMENTED_PART);
        if due {
            self.last = Some(now);
            self.just_compacted = true;
        }
        due
    }
}

/// Bytes that are free in blocks smaller than 2 MiB, from the text of `/proc/buddyinfo`: for each zone, the number of
/// blocks of 1, 2, 4 … pages.
pub(super) fn fragmented_bytes(text: &str) -> u64 {
    let zone = |line: &str| -> Option<u64> {
        let (_, counts) = line.split_once("zone")?;
        let counts = counts.split_whitespace().skip(1).take(REPORTED_ORDER).enumerate();
        let bytes = counts.map(|(order, count)| count.parse().unwrap_or(0u64).saturating_mul(PAGE << order));
        Some(bytes.fold(0, u64::saturating_add))
    };
    text.lines().filter_map(zone).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn blocks_below_2_mib_are_fragmented() {
        let text = "\
Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      3 
Node 0, zone   Normal    225     19      2      1      3      1     70     87    309    754   3280 
nonsense
";
        let pages = 256 + 225 + 2 * 19 + 4 * 2 + 8 + 16 * 3 + 32 + 64 * 70 + 128 * 87 + 256 * 309;
        assert_eq!(fragmented_bytes(text), pages * PAGE);
    }

    fn at(compaction: &mut Compaction, seconds: u64, fragmented: u64, squeezed: bool) -> bool {
        compaction.due(Duration::from_secs(seconds), fragmented * MIB, 1024 * MIB, squeezed)
    }

    #[test]
    fn it_needs_much_fragmentation_and_a_pause() {
        let mut compaction = Compaction::default();
        assert!(!at(&mut compaction, 0, 15, false));
        assert!(at(&mut compaction, 1, 16, false));
        assert!(!at(&mut compaction, 2, 0, false));
        assert!(!at(&mut compaction, 60, 100, false));
        assert!(at(&mut compaction, 61, 100, false));
        assert!(!at(&mut compaction, 90, 0, true));
        assert!(at(&mut compaction, 91, 100, true));
    }

    #[test]
    fn what_it_could_not_help_is_no_reason_to_try_again() {
        let mut compaction = Compaction::default();
        assert!(at(&mut compaction, 0, 100, false));
        assert!(!at(&mut compaction, 100, 90, false));
        assert!(!at(&mut compaction, 200, 105, false));
        assert!(at(&mut compaction, 300, 106, false));
        assert!(!at(&mut compaction, 400, 20, false));
        assert!(at(&mut compaction, 500, 36, false));
    }
}
