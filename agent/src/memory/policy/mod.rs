//! The decisions about the guest's memory. Pure: each receives figures and the time, and does no I/O.
//!
//! | file | what |
//! |---|---|
//! | `mod` | what to reclaim in a round |
//! | `load` | how busy the guest is between two readings |
//! | `generations` | the LRU's generations, read and commanded as text |
//! | `cold` | which pages are cold |
//! | `timing` | when to act again: after resistance, and before a compaction or a drop of caches |
//! | `pace` | when a report is due, and when memory is short |

mod cold;
pub(super) mod generations;
pub(super) mod load;
pub(super) mod pace;
pub(super) mod timing;

use std::time::Duration;

use self::cold::{Cold, ColdPages};
use self::generations::{Eviction, Lru};
use self::load::{Gauge, Load};
use self::timing::{Backoff, SlabDrop};
use super::readings::{Counters, Meminfo};
use super::tuning::{
    self, AGE_MIN, AGES_BUSY, AGES_IDLE, Ages, COMMANDS_MAX, PAGE, PAUSE_MORE, SHARE_AGING, STEP_SQUEEZED, SWAP_PART,
    TAKE_MIN,
};

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
    cold_pages: ColdPages,
    idle_since: Option<Duration>,
    slab_drop: SlabDrop,
    /// The last measured cost of creating generations.
    aging: Duration,
}

impl Policy {
    pub(super) fn new() -> Self {
        Self {
            gauge: Gauge::default(),
            backoff: Backoff::new(tuning::RESISTANCE),
            target_backoff: Backoff::new(tuning::UNREACHED),
            thrash_backoff: Backoff::new(tuning::RESISTANCE),
            target: None,
            cold_pages: ColdPages::default(),
            idle_since: None,
            slab_drop: SlabDrop::default(),
            aging: Duration::ZERO,
        }
    }

    /// Plans a round.
    pub(super) fn plan(&mut self, snapshot: &Snapshot) -> Plan {
        if self.target != snapshot.target {
            self.target = snapshot.target;
            self.target_backoff = Backoff::new(tuning::UNREACHED);
        }
        let load = self.gauge.update(snapshot.now, snapshot.counters);
        let idle = load.is_some_and(|load| load.idle);
        self.idle_since = idle.then(|| self.idle_since.unwrap_or(snapshot.now));
        let ages = if idle { AGES_IDLE } else { AGES_BUSY };
        let lrus = snapshot.lrus.as_deref().unwrap_or_default();
        let colds = self.cold_pages.find(snapshot.now, lrus, ages.cold);
        let cold = colds.iter().map(|cold| cold.pages.all() * PAGE).sum();
        let over = snapshot.target.map_or(0, |target| snapshot.memory.in_use().saturating_sub(target));
        let mut plan = Plan { squeezed: over > 0, cold, pause: tuning::PAUSE, share: tuning::SHARE, ..Plan::default() };
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
        self.cold_pages.note_taken(&plan.evict, outcome.asked / PAGE);
        if plan.squeezed && outcome.asked > 0 {
            if outcome.reclaimed < outcome.asked / tuning::UNREACHED_PART {
                self.target_backoff.resisted(now);
            } else {
                self.target_backoff = Backoff::new(tuning::UNREACHED);
            }
        }
        plan.pause.max(outcome.all.div_f64(plan.share))
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
        plan.share = tuning::SHARE_SQUEEZED;
        plan.pause = PAUSE_MORE;
        if load.is_some_and(|load| load.refaults > tuning::REFAULTS_MAX_SQUEEZED) {
            self.thrash_backoff.resisted(snapshot.now);
        } else {
            self.thrash_backoff.calm(snapshot.now);
        }
        let stalled = snapshot.stall_avg10.is_some_and(|stall| stall >= tuning::STALL_MAX_SQUEEZED);
        if stalled || self.target_backoff.pausing(snapshot.now) || self.thrash_backoff.pausing(snapshot.now) {
            return;
        }
        plan.pause = tuning::PAUSE_SQUEEZED;
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
            plan.share = tuning::SHARE_IDLE;
        }
        // Without PSI, a guest that has little available memory counts as under pressure.
        let tight = snapshot.counters.memory_stall.is_none()
            && snapshot.memory.available < snapshot.memory.total / tuning::TIGHT_PART;
        if load.memory_stall > tuning::STALL_MAX || load.refaults > tuning::REFAULTS_MAX || tight {
            self.backoff.resisted(snapshot.now);
        } else {
            self.backoff.calm(snapshot.now);
        }
        if self.backoff.pausing(snapshot.now) {
            return;
        }
        let step = (snapshot.memory.total / tuning::STEP_PART).clamp(tuning::STEP_MIN, tuning::STEP_MAX) / PAGE * PAGE;
        match snapshot.lrus {
            Some(_) => take(plan, snapshot, colds, step),
            None => take_without_ages(plan, snapshot),
        }
        plan.drop_slab = self.slab_drop.due(snapshot.now, snapshot.memory.slab, self.idle_since);
        if plan.asked >= step {
            plan.pause = PAUSE_MORE;
        } else if load.idle && plan.asked == 0 && snapshot.target.is_none() {
            plan.pause = tuning::PAUSE_IDLE;
        }
    }
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
    let bytes = (snapshot.memory.inactive_file / tuning::WITHOUT_AGES_PART).min(tuning::STEP_MIN);
    if bytes >= TAKE_MIN * PAGE {
        add_reclaim(plan, Reclaim { bytes, anon: false });
    }
}

#[cfg(test)]
mod tests;
