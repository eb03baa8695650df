//! The guest's memory: the figures that the agent reports, and the loop that returns unused memory to the host.
//!
//! The loop never takes memory in use. Every few seconds it checks whether the guest is calm: no task waits for memory,
//! and little of what the loop took comes back. In a calm guest it takes memory that the multi-generational LRU knows
//! to be cold, a bounded step a round. It drops page cache and moves anonymous memory to compressed swap. Then it
//! compacts free memory that is fragmented, because free page reporting returns only blocks of 2 MiB to the host. In an
//! idle guest, or when the host wants memory, free page reporting returns blocks of 64 KiB as well. Refaults and
//! pressure make the loop wait, twice as long each time. On request ([`Memory::squeeze`]) it takes more than the cold
//! memory, the coldest first.
//!
//! | file | what |
//! |---|---|
//! | `tuning` | every constant, and the definition of idle |
//! | `policy/` | every decision: pure |
//! | `reclaim` | the loop: reads the figures, asks `policy`, carries out the plan |
//! | `sampler` | the reports, and the kernel's event when memory is short |
//! | `readings` | reads `/proc` |
//! | `oom` | kills for lack of memory, except those for containers' own limits |
//! | `kernel` | the kernel's files that are written |
//! | `zram` | swap in compressed memory |
//!
//! # What is protected
//! - The agent and commands that run in the guest itself (`garret`, by `init`'s `memory.min` and `memory.low`): the loop
//!   takes only page cache from that control group. Containers in total are protected up to a quarter of memory
//!   (`memory.low`, in `kernel`), so that an image pull beside them does not evict the pages they use.
//! - Against the kernel's out-of-memory killer: the agent is exempt (`oom_score_adj` −1000; PID 1 and conmon are exempt
//!   by themselves), and the processes it starts are not. A terminal's shell has no score of its own, because every
//!   compiler started from it would inherit that score. The killer selects the largest process, so it kills the
//!   compiler and not the shell.

mod kernel;
mod oom;
mod policy;
mod procfs;
mod readings;
mod reclaim;
mod sampler;
mod tuning;
mod zram;

use std::sync::Arc;

use garret_api::agent::{MemoryReport, MemorySqueeze};
use garret_api::{Code, Problem};
use tokio::sync::watch;

use self::reclaim::{Figures, Reclaimer, SharedTarget};
use self::sampler::Sampler;
use self::tuning::TARGET_MIN;

/// The guest's memory, as the API shows it.
pub struct Memory {
    shared_target: Arc<SharedTarget>,
    figures: watch::Sender<Figures>,
    sampler: Arc<Sampler>,
}

impl Memory {
    /// Makes reports only; [`Self::start_loop`] adds the loop. Must be called within the runtime.
    pub fn new() -> Self {
        let figures = watch::Sender::new(Figures::default());
        let sampler = Sampler::start(figures.subscribe());
        Self { shared_target: Arc::default(), figures, sampler }
    }

    /// Starts the loop in a separate thread that ends with the process. For use only in a garret guest, because the
    /// loop changes the kernel's settings.
    ///
    /// # Errors
    /// No thread could be created.
    pub fn start_loop(&self) -> std::io::Result<()> {
        let (shared_target, figures) = (self.shared_target.clone(), self.figures.clone());
        let go = move || {
            reclaim::run(&shared_target, Reclaimer::new(), |now| {
                figures.send_replace(now);
            })
        };
        std::thread::Builder::new().name("memory".into()).spawn(go).map(drop)
    }

    /// Reports: one at once, then one after each change. A slow listener may miss reports, but never the last one.
    pub fn follow(&self) -> watch::Receiver<MemoryReport> {
        self.sampler.follow()
    }

    /// Makes the loop reduce memory in use (total minus free, as the host sees it) to `target` bytes, or ends this. A
    /// target above the current use has no effect. If the target cannot be reached, the loop retries after growing
    /// pauses.
    ///
    /// # Errors
    /// `invalid`: the target is below 64 MiB.
    pub fn squeeze(&self, MemorySqueeze { target }: MemorySqueeze) -> Result<(), Problem> {
        if let Some(target) = target.filter(|&target| target < TARGET_MIN) {
            let message =
                format!("target: {target} bytes are below {TARGET_MIN} (64 MiB), the least a guest can run with");
            return Err(Problem::new(Code::Invalid, message));
        }
        self.shared_target.set(target);
        Ok(())
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs only the loop and never returns: for a guest without the rest of the agent.
pub(crate) fn run_loop() -> ! {
    reclaim::run(&SharedTarget::default(), Reclaimer::new(), |_| {})
}
