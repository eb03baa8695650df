use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

use super::compaction::{self, Compaction};
use super::kernel::Kernel;
use super::policy::{Outcome, Plan, Policy, Reclaim, Snapshot};
use super::readings;
use super::shared_target::SharedTarget;
use super::zram::Zram;

/// The first round waits until the machine has started.
const FIRST: Duration = Duration::from_secs(1);
/// The pause after a round that failed.
const FAILED: Duration = Duration::from_secs(10);
const PAGE: u64 = 4096;
/// The number of pages in one request to the kernel …
const PIECE: u64 = 64;
/// … repeated for up to this time in a round. The time per page is not known in advance: a page that the host has
/// swapped out must be read back first.
const TIME: Duration = Duration::from_millis(250);

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
    let mut pause = FIRST;
    loop {
        let target = shared_target.wait(pause);
        let round = reclaimer.round(target);
        pause = reclaimer.kernel.log_once("a round failed", round).unwrap_or(FAILED);
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
        let asked = self.ask(plan, Instant::now() + TIME) * PAGE;
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
            let fragmented = compaction::fragmented_bytes(&std::fs::read_to_string("/proc/buddyinfo")?);
            if self.compaction.due(now, fragmented, total, plan.squeezed) {
                self.kernel.compact();
            }
        }
        Ok(())
    }
}

/// Divides `pages` into pieces.
fn pieces(pages: u64) -> impl Iterator<Item = u64> {
    (0..pages.div_ceil(PIECE)).map(move |piece| PIECE.min(pages - piece * PIECE))
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
}
