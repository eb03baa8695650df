//! The multi-generational LRU's generations: the text of debugfs's `lru_gen`, and the commands written to it
//! (Documentation/admin-guide/mm/multigen_lru.rst).

use std::iter::zip;
use std::time::Duration;

/// The two youngest generations cannot be evicted (`MIN_NR_GENS`).
const GENERATIONS_MIN: usize = 2;
/// 16 TiB.
const PAGES_MAX: u64 = 1 << 32;

/// The pages of one control group on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lru {
    /// The kernel's number of the control group; 0 if the group was removed and only its pages remain.
    pub memcg: u32,
    /// Its path in the hierarchy; empty in a kernel without memory control groups.
    pub path: String,
    /// The memory node.
    pub node: u32,
    /// Its generations, the oldest first.
    pub generations: Vec<Generation>,
}

/// Pages of about the same age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Generation {
    /// Its number.
    pub seq: u64,
    /// Time since this generation was created. Its pages were last accessed before the next generation was created.
    pub age: Duration,
    pub pages: Pages,
}

/// Counts of pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pages {
    /// Anonymous pages and those of tmpfs.
    pub anon: u64,
    /// Page cache.
    pub file: u64,
}

impl Pages {
    pub(crate) fn all(self) -> u64 {
        self.anon + self.file
    }
}

impl std::iter::Sum for Pages {
    fn sum<I: Iterator<Item = Self>>(pages: I) -> Self {
        pages.fold(Self::default(), |sum, pages| Self { anon: sum.anon + pages.anon, file: sum.file + pages.file })
    }
}

impl Lru {
    /// Whether its control group has been removed; then no command reaches it.
    pub(crate) fn is_orphan(&self) -> bool {
        self.memcg == 0 && !self.path.is_empty()
    }

    pub(crate) fn group(&self) -> Group {
        (self.memcg, self.node, self.path.clone())
    }

    pub(crate) fn pages(&self) -> Pages {
        self.generations.iter().map(|generation| generation.pages).sum()
    }

    /// Time since its youngest generation was created.
    pub(crate) fn youngest_age(&self) -> Option<Duration> {
        self.generations.last().map(|generation| generation.age)
    }

    /// Pages of the generations that can be evicted.
    pub(crate) fn evictable(&self) -> Pages {
        let count = self.generations.len().saturating_sub(GENERATIONS_MIN);
        self.generations[..count].iter().map(|generation| generation.pages).sum()
    }

    /// The memory that no process has accessed for `age`, and the youngest generation of it. No process uses an
    /// orphan's pages, so they are as old as their generation.
    pub(crate) fn untouched(&self, age: Duration) -> Option<(u64, Pages)> {
        let old = if self.is_orphan() {
            self.generations.iter().take_while(|generation| generation.age >= age).count()
        } else {
            let successors = zip(&self.generations, self.generations.iter().skip(1));
            let old = successors.take_while(|(_, next)| next.age >= age).count();
            old.min(self.generations.len().saturating_sub(GENERATIONS_MIN))
        };
        let old = &self.generations[..old];
        Some((old.last()?.seq, old.iter().map(|generation| generation.pages).sum()))
    }

    /// The command that creates a new generation, after a walk through the page tables of the group's processes. With
    /// `can_swap`, the ages of anonymous memory are updated too. It is forced: otherwise it has no effect once there
    /// are four generations.
    pub(crate) fn age_command(&self, can_swap: bool) -> Option<String> {
        let youngest = self.generations.last()?.seq;
        Some(format!("+ {} {} {youngest} {} 1", self.memcg, self.node, u8::from(can_swap)))
    }

    /// Evicts page cache up to and including generation `seq`.
    pub(crate) fn evict_file(&self, seq: u64, pages: u64) -> Eviction {
        Eviction { of: format!("{} {} {seq} 0", self.memcg, self.node), files_of: Some(self.group()), pages }
    }

    /// Evicts anonymous memory up to and including generation `seq`; page cache only if there is no anonymous memory.
    pub(crate) fn evict_anon(&self, seq: u64, pages: u64) -> Eviction {
        Eviction { of: format!("{} {} {seq} 200", self.memcg, self.node), files_of: None, pages }
    }
}

/// A control group's number, a memory node and the group's path. The path is needed because the kernel reuses numbers.
pub(crate) type Group = (u32, u32, String);

/// Pages to be evicted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Eviction {
    /// Group, node, generation and kind, in the format of the command.
    of: String,
    /// The group, if the pages are page cache.
    pub files_of: Option<Group>,
    /// Their number.
    pub pages: u64,
}

impl Eviction {
    /// The command to evict `pages` of them.
    pub(crate) fn command(&self, pages: u64) -> String {
        format!("- {} {pages}", self.of)
    }
}

/// Parses the whole text. A line of an unknown format is skipped.
pub(crate) fn parse(text: &str) -> Vec<Lru> {
    let mut lrus: Vec<Lru> = Vec::new();
    let (mut memcg, mut path) = (0, "");
    for line in text.lines() {
        let line = line.trim();
        if let Some(rest) = line.strip_prefix("memcg ") {
            let (number, name) = rest.trim_start().split_once(' ').unwrap_or((rest.trim_start(), ""));
            (memcg, path) = (number.parse().unwrap_or_default(), name);
        } else if let Some(number) = line.strip_prefix("node ") {
            let node = number.trim().parse().unwrap_or_default();
            lrus.push(Lru { memcg, path: path.to_owned(), node, generations: Vec::new() });
        } else if let (Some(lru), Some(generation)) = (lrus.last_mut(), parse_generation(line)) {
            lru.generations.push(generation);
        }
    }
    lrus
}

/// Number, age in milliseconds, anonymous pages, page cache. Impossibly large counts are reduced, so that sums cannot
/// overflow.
fn parse_generation(line: &str) -> Option<Generation> {
    let mut figures = line.split_whitespace().map(str::parse::<u64>);
    let mut next = || figures.next()?.ok();
    let (seq, age, anon, file) = (next()?, next()?, next()?, next()?);
    Some(Generation {
        seq,
        age: Duration::from_millis(age),
        pages: Pages { anon: anon.min(PAGES_MAX), file: file.min(PAGES_MAX) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The format of `lru_gen_seq_show` (mm/vmscan.c of Linux 6.12).
    const TEXT: &str = "\
memcg     1 /
 node     0
          4     121504         10        100 
          5      91020         20        200 
          6      61000         30        300 
          7        500         40        400 
memcg     0 /libpod_parent/libpod-a b
 node     0
          0      80000          0       5000 
          1      70000          1          2 
          2       1000          0          0 
memcg   117 /garret/agent
 node     0
          1      61000          5          6 
          2      61000          0          0 
";

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn the_kernels_text_is_parsed() {
        let lrus = parse(TEXT);
        let names: Vec<_> = lrus.iter().map(|lru| (lru.memcg, lru.path.as_str(), lru.generations.len())).collect();
        assert_eq!(names, [(1, "/", 4), (0, "/libpod_parent/libpod-a b", 3), (117, "/garret/agent", 2)]);
        let generation =
            Generation { seq: 5, age: Duration::from_millis(91_020), pages: Pages { anon: 20, file: 200 } };
        assert_eq!(lrus[0].generations[1], generation);
        assert_eq!(lrus.iter().map(Lru::is_orphan).collect::<Vec<_>>(), [false, true, false]);
        assert!(!parse("memcg     0 \n node     0\n 1 2 3 4\n")[0].is_orphan());
    }

    #[test]
    fn old_is_what_was_not_touched_since_and_can_be_evicted() {
        let lrus = parse(TEXT);
        // Generation 5 ended when generation 6 was created, 61 s ago.
        assert_eq!(lrus[0].untouched(MINUTE), Some((5, Pages { anon: 30, file: 300 })));
        assert_eq!(lrus[0].untouched(Duration::from_secs(70)), Some((4, Pages { anon: 10, file: 100 })));
        assert_eq!(lrus[0].untouched(MINUTE * 2), None);
        assert_eq!(lrus[1].untouched(MINUTE), Some((1, Pages { anon: 1, file: 5002 })));
        assert_eq!(lrus[2].untouched(MINUTE), None);
        assert_eq!(lrus[0].evictable(), Pages { anon: 30, file: 300 });
    }

    #[test]
    fn commands_are_written_as_the_kernel_reads_them() {
        let lru = &parse(TEXT)[0];
        assert_eq!(lru.age_command(true).unwrap(), "+ 1 0 7 1 1");
        assert_eq!(lru.age_command(false).unwrap(), "+ 1 0 7 0 1");
        assert_eq!(lru.evict_file(5, 300).command(20), "- 1 0 5 0 20");
        assert_eq!(lru.evict_anon(5, 30).command(30), "- 1 0 5 200 30");
        assert_eq!(Lru::default().age_command(true), None);
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_too_much(text in "(memcg|node|[0-9]{1,24}|/| |\n)*") {
            for lru in parse(&text) {
                lru.untouched(MINUTE);
                lru.evictable();
            }
        }
    }
}
