//! Decides what the loop does in a round. Pure: it receives the guest's state and returns a plan.

use std::collections::BTreeMap;
use std::time::Duration;

use super::backoff::Backoff;
use super::gauge::{Counters, Gauge, Load};
use super::generations::{Eviction, Group, Lru, Pages};
use super::low_water::LowWater;
use super::readings::Meminfo;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

/// How often generations are created and which age is cold. The kernel keeps at most four generations: the oldest is
/// cold when the next one was created at least `cold` ago.
#[derive(Clone, Copy)]
struct Ages {
    /// Interval between two generations.
    begin: Duration,
    /// Memory that was not accessed for this long is cold.
    cold: Duration,
}

/// The ages are shorter in an idle guest: no task waits, and the pages of its last work become cold soon.
const IDLE: Ages = Ages { begin: Duration::from_secs(15), cold: Duration::from_secs(30) };
const BUSY: Ages = Ages { begin: Duration::from_secs(30), cold: Duration::from_secs(60) };

/// The loop takes nothing from a guest in which tasks wait for memory during more than this fraction of the time.
const STALL_MAX: f64 = 0.01;
/// The same when the host wants memory, in per cent of the last 10 s.
const STALL_MAX_SQUEEZED: f64 = 10.0;
/// Refaults per second: at 100 µs each, this is 0.6 % of the time.
const REFAULTS_MAX: f64 = 64.0;
/// The same when the host wants memory. Pages that come back faster are in use, and the host has other means of getting
/// memory.
const REFAULTS_MAX_SQUEEZED: f64 = 512.0;

/// A round takes this fraction of memory, within these bounds in bytes.
const STEP_PART: u64 = 20;
const STEP_MIN: u64 = 64 * MIB;
const STEP_MAX: u64 = 256 * MIB;
/// The same when the host wants memory; this memory may have to be compressed.
const STEP_SQUEEZED: u64 = 32 * MIB;
/// The fewest pages of a control group that are worth a command.
const TAKE_MIN: u64 = 64;
/// No generations are created in groups with fewer pages.
const AGE_MIN: u64 = 256;
/// The most commands of one kind in a round.
const COMMANDS_MAX: usize = 128;
/// In a kernel without generations, a round takes this fraction of the inactive page cache.
const WITHOUT_AGES_PART: u64 = 64;
/// The fraction of swap that is kept free.
const SWAP_PART: u64 = 16;

/// The kernel's caches of names and attributes are dropped if the guest was idle for this long and they have this size.
/// They are dropped again only after they have grown by the same size and this interval has passed.
const SLAB_IDLE: Duration = Duration::from_secs(60);
const SLAB_MIN: u64 = 16 * MIB;
const SLAB_INTERVAL: Duration = Duration::from_secs(600);

/// The loop's share of one CPU: in a busy guest, in an idle guest, and when the host wants memory.
const SHARE: f64 = 0.005;
const SHARE_IDLE: f64 = 0.05;
const SHARE_SQUEEZED: f64 = 0.2;
/// The share for creating generations alone, which is useful only later.
const SHARE_AGING: f64 = 0.0025;

/// The shortest time between two rounds: usually, when there is nothing to do, when there is more to take, when the
/// host wants memory.
const PAUSE: Duration = Duration::from_secs(2);
const PAUSE_IDLE: Duration = Duration::from_secs(10);
const PAUSE_MORE: Duration = Duration::from_secs(1);
const PAUSE_SQUEEZED: Duration = Duration::from_millis(50);

/// The control group of the agent and of the guest's own shells: only its page cache is taken.
const PROTECTED: &str = "/garret";

/// The guest's state at the beginning of a round.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    /// Time since the loop began.
    pub now: Duration,
    pub memory: Meminfo,
    pub counters: Counters,
    /// Per cent of the last 10 s in which at least one task waited for memory.
    pub stall_avg10: Option<f64>,
    /// `None` if the kernel does not report generations.
    pub lrus: Option<Vec<Lru>>,
    /// The target for memory in use, in bytes.
    pub target: Option<u64>,
}

/// The actions of a round, in this order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// Commands that create generations.
    pub age: Vec<String>,
    /// Evictions from groups.
    pub evict: Vec<Eviction>,
    /// Reclaim from all groups, regardless of age.
    pub reclaim: Option<Reclaim>,
    /// Drop the kernel's caches of names and attributes.
    pub drop_slab: bool,
    /// Whether compaction and reports of small blocks disturb no task now.
    pub extra_work_allowed: bool,
    /// Whether the host wants memory.
    pub squeezed: bool,
    /// Bytes that are cold.
    pub cold: u64,
    /// Bytes that `evict` and `reclaim` ask for.
    pub asked: u64,
    /// The shortest time until the next round.
    pause: Duration,
    /// The largest share of a CPU that this round's time may be.
    share: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reclaim {
    pub bytes: u64,
    /// Whether to reclaim anonymous memory as well as page cache.
    pub anon: bool,
}

/// The result of a round.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outcome {
    /// Bytes that the loop had time to ask for …
    pub asked: u64,
    /// … and bytes that were reclaimed.
    pub reclaimed: u64,
    /// The thread's CPU time for creating generations.
    pub aging: Duration,
    /// The thread's CPU time for the whole round.
    pub all: Duration,
}

/// The state that is kept between rounds.
#[derive(Debug)]
pub(super) struct Policy {
    gauge: Gauge,
    /// Backoff after refaults and pressure.
    backoff: Backoff,
    /// Backoff after a target that was not reached.
    target_backoff: Backoff,
    /// Backoff after memory taken for a target came back.
    thrash_backoff: Backoff,
    target: Option<u64>,
    files: BTreeMap<Group, LowWater>,
    idle_since: Option<Duration>,
    slab_dropped: Option<(Duration, u64)>,
    slab_pending: bool,
    /// The last measured cost of creating generations.
    aging: Duration,
}

/// A group's cold pages.
struct Cold<'a> {
    lru: &'a Lru,
    seq: u64,
    pages: Pages,
}

impl Policy {
    pub(super) fn new() -> Self {
        Self {
            gauge: Gauge::default(),
            backoff: Backoff::new(Duration::from_secs(10), Duration::from_secs(600)),
            target_backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(60)),
            thrash_backoff: Backoff::new(Duration::from_secs(10), Duration::from_secs(600)),
            target: None,
            files: BTreeMap::new(),
            idle_since: None,
            slab_dropped: None,
            slab_pending: false,
            aging: Duration::ZERO,
        }
    }

    /// Plans a round.
    pub(super) fn plan(&mut self, snapshot: &Snapshot) -> Plan {
        if self.target != snapshot.target {
            self.target = snapshot.target;
            self.target_backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        }
        let load = self.gauge.update(snapshot.now, snapshot.counters);
        let idle = load.is_some_and(|load| load.idle);
        self.idle_since = idle.then(|| self.idle_since.unwrap_or(snapshot.now));
        let ages = if idle { IDLE } else { BUSY };
        let colds = self.cold(snapshot, ages);
        let cold = colds.iter().map(|cold| cold.pages.all() * PAGE).sum();
        let over = snapshot.target.map_or(0, |target| snapshot.memory.in_use().saturating_sub(target));
        let mut plan = Plan { squeezed: over > 0, cold, pause: PAUSE, share: SHARE, ..Plan::default() };
        if !load.is_some_and(|load| load.crowded) {
            plan.age = self.age(snapshot, ages);
        }
        if plan.squeezed {
            self.plan_squeezed(&mut plan, snapshot, colds, load, over);
        } else {
            self.plan_normal(&mut plan, snapshot, colds, load);
        }
        plan.extra_work_allowed = plan.squeezed || idle;
        plan
    }

    /// Ends the round; returns how long to wait for the next.
    pub(super) fn done(&mut self, now: Duration, plan: &Plan, outcome: &Outcome) -> Duration {
        if !plan.age.is_empty() {
            self.aging = outcome.aging;
        }
        self.note_taken(plan, outcome.asked / PAGE);
        if plan.squeezed && outcome.asked > 0 {
            if outcome.reclaimed < outcome.asked / 4 {
                self.target_backoff.resisted(now);
            } else {
                self.target_backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
            }
        }
        plan.pause.max(outcome.all.div_f64(plan.share))
    }

    /// Notes the evictions that were carried out: the first `pages` pages of the plan.
    fn note_taken(&mut self, plan: &Plan, mut pages: u64) {
        for eviction in &plan.evict {
            let done = eviction.pages.min(pages);
            pages -= done;
            if let Some(water) = eviction.files_of.as_ref().and_then(|group| self.files.get_mut(group)) {
                water.taken(done);
            }
        }
    }

    /// Groups that have cold pages, the largest amount first. Page cache counts only as far as it was present during
    /// the whole period ([`LowWater`]).
    fn cold<'a>(&mut self, snapshot: &'a Snapshot, ages: Ages) -> Vec<Cold<'a>> {
        let lrus = snapshot.lrus.as_deref().unwrap_or_default();
        let mut files = std::mem::take(&mut self.files);
        let mut colds = Vec::new();
        for lru in lrus {
            let group = lru.group();
            let mut water = files.remove(&group).unwrap_or_default();
            water.note(snapshot.now, lru.evictable().file, BUSY.cold);
            if let Some((seq, mut pages)) = lru.untouched(ages.cold) {
                if is_protected(lru) {
                    pages.anon = 0;
                }
                if !lru.is_orphan() {
                    pages.file = pages.file.min(water.least(snapshot.now, ages.cold));
                }
                colds.push(Cold { lru, seq, pages });
            }
            self.files.insert(group, water);
        }
        colds.retain(|cold| cold.pages.all() > 0);
        colds.sort_by_key(|cold| std::cmp::Reverse(cold.pages.all()));
        colds
    }

    /// Commands to create generations, for groups whose youngest generation is old enough.
    fn age(&self, snapshot: &Snapshot, ages: Ages) -> Vec<String> {
        let interval = ages.begin.max(self.aging.div_f64(SHARE_AGING));
        let due = |lru: &&Lru| {
            let large = lru.pages().all() >= AGE_MIN;
            large && !lru.is_orphan() && lru.youngest_age().is_some_and(|age| age >= interval)
        };
        let lrus = snapshot.lrus.iter().flatten().filter(due).take(COMMANDS_MAX);
        lrus.filter_map(|lru| lru.age_command(snapshot.memory.swap_total > 0)).collect()
    }

    /// The host wants `over` bytes: takes cold pages first, then the coldest of the others.
    fn plan_squeezed(
        &mut self,
        plan: &mut Plan,
        snapshot: &Snapshot,
        colds: Vec<Cold<'_>>,
        load: Option<Load>,
        over: u64,
    ) {
        plan.share = SHARE_SQUEEZED;
        plan.pause = PAUSE_MORE;
        if load.is_some_and(|load| load.refaults > REFAULTS_MAX_SQUEEZED) {
            self.thrash_backoff.resisted(snapshot.now);
        } else {
            self.thrash_backoff.calm(snapshot.now);
        }
        let stalled = snapshot.stall_avg10.is_some_and(|stall| stall >= STALL_MAX_SQUEEZED);
        if stalled || self.target_backoff.pausing(snapshot.now) || self.thrash_backoff.pausing(snapshot.now) {
            return;
        }
        plan.pause = PAUSE_SQUEEZED;
        let step = over.min(STEP_SQUEEZED);
        take(plan, snapshot, colds, step);
        let rest = step - plan.asked.min(step);
        if rest >= TAKE_MIN * PAGE {
            let anon = snapshot.memory.swap_free > snapshot.memory.swap_total / SWAP_PART;
            add_reclaim(plan, Reclaim { bytes: rest, anon });
        }
    }

    /// Plans a round without a request of the host: only steps that do not disturb the guest.
    fn plan_normal(&mut self, plan: &mut Plan, snapshot: &Snapshot, colds: Vec<Cold<'_>>, load: Option<Load>) {
        if snapshot.target.is_some() {
            plan.pause = PAUSE_MORE;
        }
        let Some(load) = load else { return };
        if load.idle {
            plan.share = SHARE_IDLE;
        }
        // Without PSI, a guest that has little available memory counts as under pressure.
        let tight = snapshot.counters.memory_stall.is_none() && snapshot.memory.available < snapshot.memory.total / 8;
        if load.memory_stall > STALL_MAX || load.refaults > REFAULTS_MAX || tight {
            self.backoff.resisted(snapshot.now);
        } else {
            self.backoff.calm(snapshot.now);
        }
        if self.backoff.pausing(snapshot.now) {
            return;
        }
        let step = (snapshot.memory.total / STEP_PART).clamp(STEP_MIN, STEP_MAX) / PAGE * PAGE;
        match snapshot.lrus {
            Some(_) => take(plan, snapshot, colds, step),
            None => take_without_ages(plan, snapshot),
        }
        plan.drop_slab = self.slab_is_due(snapshot);
        if plan.asked >= step {
            plan.pause = PAUSE_MORE;
        } else if load.idle && plan.asked == 0 && snapshot.target.is_none() {
            plan.pause = PAUSE_IDLE;
        }
    }

    /// Whether the slab caches must be dropped: after a long idle time and much growth.
    fn slab_is_due(&mut self, snapshot: &Snapshot) -> bool {
        let slab = snapshot.memory.slab;
        if std::mem::take(&mut self.slab_pending)
            && let Some((_, left)) = &mut self.slab_dropped
        {
            *left = slab;
        }
        let (rested, left) = match self.slab_dropped {
            Some((at, left)) => (snapshot.now >= at + SLAB_INTERVAL, left),
            None => (true, 0),
        };
        let idle = self.idle_since.is_some_and(|since| snapshot.now >= since + SLAB_IDLE);
        let due = idle && rested && slab.saturating_sub(left) >= SLAB_MIN;
        if due {
            self.slab_dropped = Some((snapshot.now, slab));
            self.slab_pending = true;
        }
        due
    }
}

fn is_protected(lru: &Lru) -> bool {
    lru.path.strip_prefix(PROTECTED).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Takes cold pages, up to `step` bytes.
fn take(plan: &mut Plan, snapshot: &Snapshot, colds: Vec<Cold<'_>>, step: u64) {
    let mut left = step / PAGE;
    let mut swap = snapshot.memory.swap_free.saturating_sub(snapshot.memory.swap_total / SWAP_PART) / PAGE;
    let mut orphaned = 0;
    for Cold { lru, seq, pages } in colds.into_iter().take(COMMANDS_MAX) {
        let file = pages.file.min(left);
        left -= file;
        if lru.is_orphan() {
            orphaned += file;
            continue;
        }
        let anon = pages.anon.min(left).min(swap);
        left -= anon;
        swap -= anon;
        if file >= TAKE_MIN {
            plan.evict.push(lru.evict_file(seq, file));
            plan.asked += file * PAGE;
        }
        if anon >= TAKE_MIN {
            plan.evict.push(lru.evict_anon(seq, anon));
            plan.asked += anon * PAGE;
        }
    }
    // No command reaches a removed group, but the kernel's own reclaim begins with removed groups.
    if orphaned >= TAKE_MIN {
        add_reclaim(plan, Reclaim { bytes: orphaned * PAGE, anon: false });
    }
}

/// Adds to the reclaim of the plan. The sum includes anonymous memory if either part does.
fn add_reclaim(plan: &mut Plan, more: Reclaim) {
    let have = plan.reclaim.unwrap_or(Reclaim { bytes: 0, anon: false });
    plan.reclaim = Some(Reclaim { bytes: have.bytes + more.bytes, anon: have.anon || more.anon });
    plan.asked += more.bytes;
}

/// Without known ages: takes a little of the inactive page cache.
fn take_without_ages(plan: &mut Plan, snapshot: &Snapshot) {
    let bytes = (snapshot.memory.inactive_file / WITHOUT_AGES_PART).min(STEP_MIN);
    if bytes >= TAKE_MIN * PAGE {
        add_reclaim(plan, Reclaim { bytes, anon: false });
    }
}

#[cfg(test)]
#[path = "policy_test.rs"]
mod tests;
