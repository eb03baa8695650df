//! Which pages are cold.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::generations::{Eviction, Group, Lru, Pages};
use crate::memory::tuning::{AGES_BUSY, MARKS_MAX};

/// The control group of the agent and of the guest's own shells: only its page cache is taken.
const PROTECTED: &str = "/garret";

/// A group's cold pages.
pub(super) struct Cold<'a> {
    pub lru: &'a Lru,
    /// The youngest generation of them.
    pub seq: u64,
    pub pages: Pages,
}

/// The page cache of each group, observed from round to round.
#[derive(Debug, Default)]
pub(super) struct ColdPages {
    files: BTreeMap<Group, LowWater>,
}

impl ColdPages {
    /// Groups that have pages which no process has accessed for `age`, the largest amount first. Page cache counts only
    /// as far as it was present during the whole period ([`LowWater`]).
    pub(super) fn find<'a>(&mut self, now: Duration, lrus: &'a [Lru], age: Duration) -> Vec<Cold<'a>> {
        let mut files = std::mem::take(&mut self.files);
        let mut colds = Vec::new();
        for lru in lrus {
            let group = lru.group();
            let mut water = files.remove(&group).unwrap_or_default();
            water.note(now, lru.evictable().file, AGES_BUSY.cold);
            if let Some((seq, mut pages)) = lru.untouched(age) {
                if is_protected(lru) {
                    pages.anon = 0;
                }
                if !lru.is_orphan() {
                    pages.file = pages.file.min(water.least(now, age));
                }
                colds.push(Cold { lru, seq, pages });
            }
            self.files.insert(group, water);
        }
        colds.retain(|cold| cold.pages.all() > 0);
        colds.sort_by_key(|cold| std::cmp::Reverse(cold.pages.all()));
        colds
    }

    /// Notes that the first `pages` pages of these evictions were carried out.
    pub(super) fn note_taken(&mut self, evictions: &[Eviction], mut pages: u64) {
        for eviction in evictions {
            let done = eviction.pages.min(pages);
            pages -= done;
            if let Some(water) = eviction.files_of.as_ref().and_then(|group| self.files.get_mut(group)) {
                water.taken(done);
            }
        }
    }
}

fn is_protected(lru: &Lru) -> bool {
    lru.path.strip_prefix(PROTECTED).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The minimum of a figure over a recent period: the part of a queue that was in it during the whole period.
///
/// The kernel does not know that a file read through a descriptor is young: its pages enter one of the oldest
/// generations at once, behind the existing pages. So only the number of pages that were in those generations during
/// the whole period counts as cold.
#[derive(Clone, Debug, Default)]
struct LowWater {
    marks: VecDeque<(Duration, u64)>,
}

impl LowWater {
    /// Notes the figure at `now`, and drops marks older than `keep`, except the newest of these.
    fn note(&mut self, now: Duration, figure: u64, keep: Duration) {
        self.marks.push_back((now, figure));
        while self.marks.len() > MARKS_MAX || self.marks.get(1).is_some_and(|(at, _)| *at + keep <= now) {
            self.marks.pop_front();
        }
    }

    /// The minimum over the last `window` up to `now`; 0 if the figure is not known for that long.
    fn least(&self, now: Duration, window: Duration) -> u64 {
        let known = self.marks.iter().rposition(|(at, _)| *at + window <= now);
        known.and_then(|from| self.marks.range(from..).map(|(_, figure)| *figure).min()).unwrap_or(0)
    }

    /// Notes that `count` left the queue at its old end, so that they no longer count as present before.
    fn taken(&mut self, count: u64) {
        self.marks.iter_mut().for_each(|(_, figure)| *figure = figure.saturating_sub(count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(60);

    fn noted(figures: &[(u64, u64)]) -> LowWater {
        let mut water = LowWater::default();
        for (at, figure) in figures {
            water.note(Duration::from_secs(*at), *figure, WINDOW);
        }
        water
    }

    #[test]
    fn only_what_was_there_throughout_counts() {
        let least = |figures: &[(u64, u64)], now| noted(figures).least(Duration::from_secs(now), WINDOW);
        assert_eq!(least(&[], 100), 0);
        assert_eq!(least(&[(0, 5)], 59), 0);
        assert_eq!(least(&[(0, 5)], 60), 5);
        assert_eq!(least(&[(0, 5), (30, 9), (60, 7)], 60), 5);
        assert_eq!(least(&[(0, 5), (30, 9), (60, 7)], 90), 7);
        assert_eq!(least(&[(0, 5), (59, 9)], 118), 5);
        assert_eq!(least(&[(0, 500), (70, 9)], 70), 9);
    }

    #[test]
    fn pages_added_after_a_reclaim_are_young() {
        let mut water = noted(&[(0, 100), (60, 100)]);
        water.taken(80);
        water.note(Duration::from_secs(65), 50, WINDOW);
        assert_eq!(water.least(Duration::from_secs(65), WINDOW), 20);
        assert_eq!(water.least(Duration::from_secs(125), WINDOW), 50);
    }

    #[test]
    fn its_size_is_bounded() {
        let mut water = LowWater::default();
        for at in 0..10_000 {
            water.note(Duration::from_millis(at), at, WINDOW);
        }
        assert!(water.marks.len() <= MARKS_MAX);
    }
}
