//! Every figure of the policy, with its unit and its reason. Proportions inside a formula stay with the formula.

use std::time::Duration;

const MIB: u64 = 1 << 20;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

// Idle machines (`activity`).

/// A machine is idle if it uses less than [`garret_api::IDLE_CPUS`] for this long.
pub(super) const IDLE_AFTER: Duration = s(60);
/// CPU use is averaged over this time, because an idle guest's timers fire in bursts.
pub(super) const CPU_AVERAGE: Duration = s(5);
/// A machine that uses this many seconds of CPU time between two cycles is awake at once. Cycles may come early.
pub(super) const AWAKE_CPU_S: f64 = 0.25;
/// A longer time between two cycles (the host slept) counts as this: a condition that holds at both cycles may not have
/// held between them.
pub(super) const ELAPSED_MAX: Duration = s(10);

// What a machine uses and may claim (`working_set`, `targets`).

/// A machine that holds memory uses at least this much of it, whatever its guest reports.
pub(super) const WORKING_SET_MIN: u64 = 64 * MIB;
/// In addition to its working set, a machine may claim a quarter of it, at least this much.
pub(super) const CLAIM_HEADROOM: u64 = 64 * MIB;
/// The cost of one idle byte, in bytes in use: 1 / (1 - 0.75).
pub(super) const IDLE_COST: u128 = 4;

// What a guest may plug (`limits`).

/// Linux plugs and unplugs whole memory sections.
pub(super) const SECTION: u64 = 128 * MIB;
/// Headroom: half of the used memory, at least this.
pub(super) const LIMIT_HEADROOM: u64 = 512 * MIB;
/// Headroom of a squeezed machine: a quarter, at least this, because with less its agent reports a shortage.
pub(super) const LIMIT_HEADROOM_SQUEEZED: u64 = 256 * MIB;
/// A limit is lowered by no less than this.
pub(super) const LIMIT_STEP_MIN: u64 = 256 * MIB;
/// How long a limit must be too high before it is lowered.
pub(super) const LIMIT_PATIENCE: Duration = s(30);
/// The same for a machine that is squeezed.
pub(super) const LIMIT_PATIENCE_SQUEEZED: Duration = s(3);
/// How long a guest may leave a part of its limit unplugged before the runner asks again. Plugging fails in a guest
/// whose memory reserves are used up, and in a guest kernel of an earlier garret, which may not use them. Linux retries
/// after 50 s (`VIRTIO_MEM_RETRY_TIMER_MIN_MS`), or at once if it is asked.
pub(super) const PLUG_RETRY_AFTER: Duration = s(2);
/// With this much memory swapped out of a machine, nothing is unplugged. Linux moves memory before it unplugs it, and
/// would have to swap it in for that.
pub(super) const UNPLUG_SWAPPED_MAX: u64 = 64 * MIB;

// How short the host's memory is (`pressure`).

/// Pressure on some tasks at which memory is short, and on all tasks at which it is very short, in per cent.
pub(super) const PRESSED_SOME: f64 = 5.0;
pub(super) const HARD_FULL: f64 = 5.0;
/// The level falls at a quarter more available memory than where it rose, and at half the pressure.
pub(super) const RELAXED_PRESSURE: f64 = 0.5;
/// How long the figures must be better before the level falls.
pub(super) const SETTLE: Duration = s(10);
/// Memory that is short again within this time was given back too early. The next wait is twice as long …
pub(super) const RELAPSE: Duration = s(120);
/// … up to this.
pub(super) const SETTLE_MAX: Duration = s(320);

// How memory is taken while it is short (`ladder`, `escalation`).

/// How often a request to a guest is repeated, because its agent may have been restarted.
pub(super) const SQUEEZE_REPEAT: Duration = s(10);
/// How long a guest may take to shrink before its memory is swapped; and the same when memory is very short.
pub(super) const GUEST_PATIENCE: Duration = s(5);
pub(super) const GUEST_PATIENCE_HARD: Duration = s(1);
/// How much is swapped out per second, of all machines together.
pub(super) const SWAP_PACE: u64 = 256 * MIB;
/// One part in this many of the swap is left to the kernel.
pub(super) const SWAP_KEPT: u64 = 20;
/// A smaller amount is not worth an order.
pub(super) const SWAP_MIN: u64 = 4 * MIB;
/// How long memory must have been very short, in spite of swapping, before a machine is paused.
pub(super) const SWAP_PATIENCE: Duration = s(15);
/// How long a machine takes to pause or resume after the order.
pub(super) const PAUSE_DELAY: Duration = s(3);
/// The minimum time between two pauses.
pub(super) const PAUSE_GAP: Duration = s(10);
/// The longest that a machine is paused while host memory is short. Then another machine may be paused.
pub(super) const PAUSE_MAX: Duration = s(300);
/// The minimum time between two resumes while the host is calm. Other resumes do not wait.
pub(super) const RESUME_GAP: Duration = s(2);
/// How long a machine must have been far below its target to be released before the host is calm.
pub(super) const RELEASE_PATIENCE: Duration = s(30);

// How idle machines are swapped out (`idle_swap`).

/// How long a machine must have been idle. No client is connected by then, so no client notices.
pub(super) const IDLE_SWAP_AFTER: Duration = s(10);
/// The interval between two steps, at first …
pub(super) const IDLE_SWAP_INTERVAL: Duration = s(5);
/// … and the longest, after much memory was swapped in again.
pub(super) const IDLE_SWAP_INTERVAL_MAX: Duration = s(640);
/// How much is swapped out in one step. The first steps yield little, because the kernel must first find untouched
/// memory.
pub(super) const IDLE_SWAP_STEP_MAX: u64 = 32 * MIB;
/// A smaller amount is not worth an order.
pub(super) const IDLE_SWAP_STEP_MIN: u64 = MIB;
/// How much stays in memory: an idle guest's kernel, agent and timers touch about as much.
pub(super) const IDLE_RESIDENT_MIN: u64 = 16 * MIB;
/// If no more than this is swapped in again, it is ignored. More means that the machine was not really idle, or that it
/// wakes now and then.
pub(super) const SWAP_IN_IGNORED: u64 = 2 * MIB;
/// After the machine has been awake for this long, its next step is reported again. After no memory was swapped in for
/// this long, the interval returns to [`IDLE_SWAP_INTERVAL`].
pub(super) const IDLE_SWAP_RESET_AFTER: Duration = s(600);
