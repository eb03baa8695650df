//! The loop: reads the figures, asks the policy, carries out its plan.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

use super::kernel::Kernel;
use super::policy::timing::Compaction;
use super::policy::{Outcome, Plan, Policy, Reclaim, Snapshot};
use super::readings;
use super::tuning::{PAGE, PAUSE_FAILED, PAUSE_FIRST, PIECE_PAGES, ROUND_TIME};
use super::zram::Zram;

/// The target, passed from the API to the loop. The last one counts, and a new one wakes the loop.
#[derive(Default)]
pub(super) struct SharedTarget {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default)]
struct State {
    target: Option<u64>,
    new: bool,
}

impl SharedTarget {
    /// Sets the target, in bytes. Setting the same target again has no effect.
    pub(super) fn set(&self, target: Option<u64>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.target != target {
            *state = State { target, new: true };
            self.changed.notify_one();
        }
    }

    /// Waits for a new target, at most `time`; returns the current target.
    pub(super) fn wait(&self, time: Duration) -> Option<u64> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(state, time, |state| !state.new);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.new = false;
        state.target
    }
}

/// The loop's figures for the reports, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    /// Cold memory.
    pub cold: u64,
    /// Memory that was reclaimed since the loop began.
    pub reclaimed: u64,
}

/// Runs the loop and never returns. Calls `report` with the figures after each round.
pub(super) fn run(shared_target: &SharedTarget, mut reclaimer: Reclaimer, report: impl Fn(Figures)) -> ! {
    let mut pause = PAUSE_FIRST;
    loop {
        let target = shared_target.wait(pause);
        let round = reclaimer.round(target);
        pause = reclaimer.kernel.log_once("a round failed", round).unwrap_or(PAUSE_FAILED);
        report(reclaimer.figures);
    }
}

/// The loop's state.
pub(super) struct Reclaimer {
    begun: Instant,
    kernel: Kernel,
    policy: Policy,
    compaction: Compaction,
    zram: Zram,
    figures: Figures,
}

impl Reclaimer {
    pub(super) fn new() -> Self {
        Self {
            begun: Instant::now(),
            kernel: Kernel::new(),
            policy: Policy::new(),
            compaction: Compaction::default(),
            zram: Zram::default(),
            figures: Figures::default(),
        }
    }

    /// Runs one round; returns how long to wait for the next.
    fn round(&mut self, target: Option<u64>) -> std::io::Result<Duration> {
        let begun = cpu_time();
        let before = readings::vmstat()?;
        let snapshot = self.snapshot(target, before)?;
        self.follow_growth();
        let plan = self.policy.plan(&snapshot);
        self.figures.cold = plan.cold;
        let aging_begun = cpu_time();
        plan.age.iter().for_each(|command| self.kernel.command(command));
        let aging = cpu_time().saturating_sub(aging_begun);
        let (asked, reclaimed) = self.take(&plan, before)?;
        self.compact(&plan, snapshot.now, snapshot.memory.total)?;
        self.kernel.report_small(plan.extra_work_allowed);
        let outcome = Outcome { asked, reclaimed, aging, all: cpu_time().saturating_sub(begun) };
        Ok(self.policy.done(self.begun.elapsed(), &plan, &outcome))
    }

    /// Adapts to plugged memory. Asks the kernel itself, because another file may be mounted over `/proc/meminfo`.
    fn follow_growth(&mut self) {
        let info = rustix::system::sysinfo();
        let total = info.totalram.saturating_mul(info.mem_unit.into());
        let grown = self.zram.follow(total);
        self.kernel.log_once("swap in zram", grown);
        self.kernel.protect_containers(total);
    }

    fn snapshot(&mut self, target: Option<u64>, vmstat: readings::Vmstat) -> std::io::Result<Snapshot> {
        let pressure = readings::memory_pressure();
        if pressure.is_none() {
            let missing = Err::<(), _>(std::io::ErrorKind::NotFound.into());
            self.kernel.log_once("pressure is not known, available memory and refaults alone decide", missing);
        }
        Ok(Snapshot {
            now: self.begun.elapsed(),
            memory: readings::meminfo()?,
            counters: readings::counters(pressure, vmstat)?,
            stall_avg10: pressure.map(|pressure| pressure.some_avg10),
            lrus: self.kernel.lrus(),
            target,
        })
    }

    /// Carries out the plan, as far as the time allows. Returns the bytes that were asked for, and the bytes evicted
    /// meanwhile.
    fn take(&mut self, plan: &Plan, before: readings::Vmstat) -> std::io::Result<(u64, u64)> {
        if plan.drop_slab {
            self.kernel.drop_slab();
        }
        if plan.asked == 0 {
            return Ok((0, 0));
        }
        let asked = self.ask(plan, Instant::now() + ROUND_TIME) * PAGE;
        let evicted = readings::vmstat()?.evicted.saturating_sub(before.evicted);
        let reclaimed = evicted.saturating_mul(PAGE);
        self.figures.reclaimed = self.figures.reclaimed.saturating_add(reclaimed);
        Ok((asked, reclaimed))
    }

    /// Sends the requests of the plan to the kernel, piece by piece; returns the number of pages it had time for.
    fn ask(&mut self, plan: &Plan, until: Instant) -> u64 {
        let mut asked = 0;
        for eviction in &plan.evict {
            for pages in pieces(eviction.pages).take_while(|_| Instant::now() < until) {
                self.kernel.command(&eviction.command(pages));
                asked += pages;
            }
        }
        if let Some(Reclaim { bytes, anon }) = plan.reclaim {
            for pages in pieces(bytes / PAGE).take_while(|_| Instant::now() < until) {
                asked += pages;
                if !self.kernel.reclaim(Reclaim { bytes: pages * PAGE, anon }) {
                    break;
                }
            }
        }
        asked
    }

    /// Compacts last, because reclaim leaves fragments.
    fn compact(&mut self, plan: &Plan, now: Duration, total: u64) -> std::io::Result<()> {
        if plan.extra_work_allowed {
            let fragmented = readings::fragmented_bytes(&std::fs::read_to_string("/proc/buddyinfo")?);
            if self.compaction.due(now, fragmented, total, plan.squeezed) {
                self.kernel.compact();
            }
        }
        Ok(())
    }
}

/// Divides `pages` into pieces.
fn pieces(pages: u64) -> impl Iterator<Item = u64> {
    (0..pages.div_ceil(PIECE_PAGES)).map(move |piece| PIECE_PAGES.min(pages - piece * PIECE_PAGES))
}

/// CPU time of this thread, which includes the kernel's work for it.
fn cpu_time() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_THREAD) else { return Duration::ZERO };
    let times = [usage.user_time(), usage.system_time()];
    times.iter().map(|time| Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()).unsigned_abs())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_all_of_it() {
        for (pages, expected) in [(0, &[][..]), (1, &[1]), (64, &[64]), (150, &[64, 64, 22])] {
            assert_eq!(pieces(pages).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn a_new_target_ends_the_wait_and_stays() {
        let shared_target = SharedTarget::default();
        assert_eq!(shared_target.wait(Duration::ZERO), None);
        shared_target.set(Some(7));
        assert_eq!(shared_target.wait(Duration::from_secs(60)), Some(7));
        shared_target.set(Some(7));
        assert_eq!(shared_target.wait(Duration::from_millis(1)), Some(7));
        shared_target.set(None);
        assert_eq!(shared_target.wait(Duration::from_secs(60)), None);
    }
}
