use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

use super::compaction::{self, Compaction};
use super::kernel::Kernel;
use super::orders::Orders;
use super::policy::{Outcome, Plan, Policy, Reclaim, Seen};
use super::readings;
use super::zram::Zram;

/// The machine comes up first.
const FIRST: Duration = Duration::from_secs(1);
/// After a round that failed.
const FAILED: Duration = Duration::from_secs(10);
const PAGE: u64 = 4096;
/// What the kernel is asked for at a time, in pages …
const PIECE: u64 = 64;
/// … again and again for so long in a round. How long a page takes is not known before: one that the host has swapped out
/// has to come back first.
const TIME: Duration = Duration::from_millis(250);

/// What the loop knows and the reports tell, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// What is cold.
    pub cold: u64,
    /// What was taken since the loop began.
    pub reclaimed: u64,
}

/// Runs the loop and never returns. Calls `tell` with the figures after each round.
pub fn run(orders: &Orders, mut reclaimer: Reclaimer, tell: impl Fn(Figures)) -> ! {
    let mut pause = FIRST;
    loop {
        let target = orders.wait(pause);
        let round = reclaimer.round(target);
        pause = reclaimer.kernel.tell("a round failed", round).unwrap_or(FAILED);
        tell(reclaimer.figures);
    }
}

/// The loop's state.
pub struct Reclaimer {
    begun: Instant,
    kernel: Kernel,
    policy: Policy,
    compaction: Compaction,
    zram: Zram,
    figures: Figures,
}

impl Reclaimer {
    pub fn new() -> Self {
        Self {
            begun: Instant::now(),
            kernel: Kernel::new(),
            policy: Policy::new(),
            compaction: Compaction::default(),
            zram: Zram::default(),
            figures: Figures::default(),
        }
    }

    /// One round; how long to wait for the next.
    fn round(&mut self, target: Option<u64>) -> std::io::Result<Duration> {
        let begun = cpu_time();
        let before = readings::vmstat()?;
        let seen = self.look(target, before)?;
        self.follow_growth();
        let plan = self.policy.plan(&seen);
        self.figures.cold = plan.cold;
        let aging_begun = cpu_time();
        plan.age.iter().for_each(|command| self.kernel.command(command));
        let aging = cpu_time().saturating_sub(aging_begun);
        let (asked, reclaimed) = self.take(&plan, before)?;
        self.compact(&plan, seen.now, seen.memory.total)?;
        self.kernel.report_small(plan.at_leisure);
        let outcome = Outcome { asked, reclaimed, aging, all: cpu_time().saturating_sub(begun) };
        Ok(self.policy.done(self.begun.elapsed(), &plan, &outcome))
    }

    /// Memory may have been plugged. Asked of the kernel itself: `/proc/meminfo` may have another file bound over it.
    fn follow_growth(&mut self) {
        let info = rustix::system::sysinfo();
        let total = info.totalram.saturating_mul(info.mem_unit.into());
        let grown = self.zram.follow(total);
        self.kernel.tell("swap in zram", grown);
        self.kernel.protect_containers(total);
    }

    fn look(&mut self, target: Option<u64>, vmstat: readings::Vmstat) -> std::io::Result<Seen> {
        let pressure = readings::memory_pressure();
        if pressure.is_none() {
            let missing = Err::<(), _>(std::io::ErrorKind::NotFound.into());
            self.kernel.tell("pressure is not known, available memory and refaults alone decide", missing);
        }
        Ok(Seen {
            now: self.begun.elapsed(),
            memory: readings::meminfo()?,
            counters: readings::counters(pressure, vmstat)?,
            stall_avg10: pressure.map(|pressure| pressure.some_avg10),
            lrus: self.kernel.lrus(),
            target,
        })
    }

    /// Takes what is planned, as far as there is time; bytes that were asked for, and that were evicted meanwhile.
    fn take(&mut self, plan: &Plan, before: readings::Vmstat) -> std::io::Result<(u64, u64)> {
        if plan.drop_slab {
            self.kernel.drop_slab();
        }
        if plan.asked == 0 {
            return Ok((0, 0));
        }
        let asked = self.ask(plan, Instant::now() + TIME) * PAGE;
        let evicted = readings::vmstat()?.evicted.saturating_sub(before.evicted);
        let reclaimed = evicted.saturating_mul(PAGE);
        self.figures.reclaimed = self.figures.reclaimed.saturating_add(reclaimed);
        Ok((asked, reclaimed))
    }

    /// Asks the kernel for what is planned, piece by piece; how many pages there was time for.
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

    /// Last, for what was taken leaves crumbs.
    fn compact(&mut self, plan: &Plan, now: Duration, total: u64) -> std::io::Result<()> {
        if plan.at_leisure {
            let crumbs = compaction::crumbs(&std::fs::read_to_string("/proc/buddyinfo")?);
            if self.compaction.due(now, crumbs, total, plan.squeezed) {
                self.kernel.compact();
            }
        }
        Ok(())
    }
}

/// So many pages in pieces.
fn pieces(pages: u64) -> impl Iterator<Item = u64> {
    (0..pages.div_ceil(PIECE)).map(move |piece| PIECE.min(pages - piece * PIECE))
}

/// Of this thread: what the kernel does for it counts.
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
}
