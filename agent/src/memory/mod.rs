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
//! | `reclaim` | the loop: reads, has it decided, does it |
//! | `policy` | what to take in a round: pure |
//! | `gauge` | how busy the guest is between two looks: pure |
//! | `backoff` | how long to wait after resistance: pure |
//! | `generations` | the LRU's generations, read and commanded as text: pure |
//! | `low_water` | what has been there all the time: pure |
//! | `compaction` | when to compact: pure |
//! | `swap_size` | how much swap to add as memory grows: pure |
//! | `readings` | `/proc`, read |
//! | `kernel` | the kernel's files that are written, and what it lacks |
//! | `zram` | swap in compressed memory |
//! | `orders` | the target, handed to the loop |
//! | `sampler` | the reports of all listeners, from one sampler |
//! | `pace` | when a report is due, and when memory is short: pure |
//! | `trigger` | the kernel's own word that memory is short |
//! | `zones` | whether the kernel's own zones are short: then what is plugged next is theirs |
//! | `oom` | kills for lack of memory, without those of containers' own limits |
//!
//! # What is protected
//! - The agent and what is run in the guest itself (`garret`, by `init`'s `memory.min` and `memory.low`): of that control
//!   group the loop takes page cache only. Containers as a whole are protected for a quarter of memory (`memory.low`, in
//!   `kernel`), so that an image pull beside them does not push out what they work with.
//! - Against the kernel's killer: the agent is exempt (`oom_score_adj` −1000; PID 1 and conmon are by themselves), and
//!   what the agent starts is not. A terminal's shell has no score of its own, for every compiler started from it would
//!   inherit that; the killer's rule, the largest first, finds the compiler and not the shell.

mod backoff;
mod compaction;
mod gauge;
mod generations;
mod kernel;
mod low_water;
mod oom;
mod orders;
mod pace;
mod policy;
mod readings;
mod reclaim;
mod sampler;
mod swap_size;
mod trigger;
mod zones;
mod zram;

use std::sync::Arc;

use garret_api::Problem;
use garret_api::agent::{MemoryReport, MemorySqueeze};
use tokio::sync::watch;

use orders::Orders;
use reclaim::{Figures, Reclaimer};
use sampler::Sampler;

/// The least a guest can be asked to make do with, in bytes.
const TARGET_MIN: u64 = 64 << 20;

/// The guest's memory, as the API has it.
pub struct Memory {
    orders: Arc<Orders>,
    figures: watch::Sender<Figures>,
    sampler: Arc<Sampler>,
}

impl Memory {
    /// Reports only, from within the runtime; [`Self::start_loop`] adds the loop.
    pub fn new() -> Self {
        let figures = watch::Sender::new(Figures::default());
        let sampler = Sampler::start(figures.subscribe());
        Self { orders: Arc::default(), figures, sampler }
    }

    /// Starts the loop in a thread of its own; it ends with the process. Only in a guest of garret's: it changes the
    /// kernel's settings.
    ///
    /// # Errors
    /// There is no room for a thread.
    pub fn start_loop(&self) -> std::io::Result<()> {
        let (orders, figures) = (self.orders.clone(), self.figures.clone());
        let go = move || {
            reclaim::run(&orders, Reclaimer::new(), |now| {
                figures.send_replace(now);
            })
        };
        std::thread::Builder::new().name("memory".into()).spawn(go).map(drop)
    }

    /// Reports: one at once, more as things change. A slow listener misses some, never the last.
    pub fn follow(&self) -> watch::Receiver<MemoryReport> {
        self.sampler.follow()
    }

    /// Has the loop come down to `target` bytes in use (total less free: what the host sees), or ends that. A target
    /// the guest is below already needs nothing; one it cannot reach is given up after growing pauses and tried again.
    ///
    /// # Errors
    /// `invalid`: the target is below 64 MiB.
    pub fn squeeze(&self, MemorySqueeze { target }: MemorySqueeze) -> Result<(), Problem> {
        if let Some(target) = target.filter(|&target| target < TARGET_MIN) {
            let message =
                format!("target: {target} bytes are below {TARGET_MIN} (64 MiB), the least a guest can run with");
            return Err(Problem::new("invalid", message));
        }
        self.orders.set(target);
        Ok(())
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs the loop alone and never returns: for a guest without the rest of the agent.
pub fn run_loop() -> ! {
    reclaim::run(&Orders::default(), Reclaimer::new(), |_| {})
}
