//! Every figure that can be tuned: value, unit, reason. Paths and formats of the kernel stay beside the code that uses
//! them.
//!
//! # Idle
//! A guest is idle if it used less than [`garret_api::IDLE_CPUS`] during the last span of
//! [`LOAD_SPAN`]. In an idle guest the loop ages memory faster, may use more CPU time, compacts, and reports small free
//! blocks.

use std::time::Duration;

pub(super) const PAGE: u64 = 4096;
pub(super) const MIB: u64 = 1 << 20;

// The load of the guest.

/// The kernel updates its totals of pressure every 2 s: a shorter span has no information.
pub(super) const LOAD_SPAN: Duration = Duration::from_secs(2);
/// A guest in which tasks wait for a CPU during more than this fraction of the time is crowded: the loop creates no
/// generations in it.
pub(super) const CROWDED_STALL: f64 = 0.5;

// Cold memory.

/// How often generations are created and which age is cold. The kernel keeps at most four generations: the oldest is
/// cold when the next one was created at least `cold` ago.
#[derive(Clone, Copy)]
pub(super) struct Ages {
    /// Interval between two generations.
    pub begin: Duration,
    /// Memory that was not accessed for this long is cold.
    pub cold: Duration,
}

/// The ages are shorter in an idle guest: no task waits, and the pages of its last work become cold soon.
pub(super) const AGES_IDLE: Ages = Ages { begin: Duration::from_secs(15), cold: Duration::from_secs(30) };
pub(super) const AGES_BUSY: Ages = Ages { begin: Duration::from_secs(30), cold: Duration::from_secs(60) };
/// No generations are created in groups with fewer pages.
pub(super) const AGE_MIN: u64 = 256;
/// The most marks that are kept of a group's page cache; the oldest is dropped first.
pub(super) const MARKS_MAX: usize = 64;

// When the guest resists.

/// The loop takes nothing from a guest in which tasks wait for memory during more than this fraction of the time.
pub(super) const STALL_MAX: f64 = 0.01;
/// The same when the host wants memory, in per cent of the last 10 s.
pub(super) const STALL_MAX_SQUEEZED: f64 = 10.0;
/// Refaults per second: at 100 µs each, this is 0.6 % of the time.
pub(super) const REFAULTS_MAX: f64 = 64.0;
/// The same when the host wants memory. Pages that come back faster are in use, and the host has other means of getting
/// memory.
pub(super) const REFAULTS_MAX_SQUEEZED: f64 = 512.0;
/// Without PSI, a guest in which less than this part of memory is available counts as under pressure.
pub(super) const TIGHT_PART: u64 = 8;

/// The first and the longest pause of a [`Backoff`](super::policy::timing::Backoff).
#[derive(Clone, Copy, Debug)]
pub(super) struct Pauses {
    pub first: Duration,
    pub max: Duration,
}

/// After refaults or stalls, whether the host wants memory or not.
pub(super) const RESISTANCE: Pauses = Pauses { first: Duration::from_secs(10), max: Duration::from_secs(600) };
/// After a round that reclaimed less than this part of what it asked for.
pub(super) const UNREACHED: Pauses = Pauses { first: Duration::from_secs(1), max: Duration::from_secs(60) };
pub(super) const UNREACHED_PART: u64 = 4;

// How much a round takes.

/// A round takes this fraction of memory, within these bounds in bytes.
pub(super) const STEP_PART: u64 = 20;
pub(super) const STEP_MIN: u64 = 64 * MIB;
pub(super) const STEP_MAX: u64 = 256 * MIB;
/// The same when the host wants memory; this memory may have to be compressed.
pub(super) const STEP_SQUEEZED: u64 = 32 * MIB;
/// The fewest pages of a control group that are worth a command.
pub(super) const TAKE_MIN: u64 = 64;
/// The most commands of one kind in a round.
pub(super) const COMMANDS_MAX: usize = 128;
/// In a kernel without generations, a round takes this fraction of the inactive page cache.
pub(super) const WITHOUT_AGES_PART: u64 = 64;
/// The fraction of swap that is kept free.
pub(super) const SWAP_PART: u64 = 16;
/// The number of pages in one request to the kernel …
pub(super) const PIECE_PAGES: u64 = 64;
/// … repeated for up to this time in a round. The time per page is not known in advance: a page that the host has
/// swapped out must be read back first.
pub(super) const ROUND_TIME: Duration = Duration::from_millis(250);
/// The smallest target of a squeeze, in bytes: the least a guest can run with.
pub(super) const TARGET_MIN: u64 = 64 * MIB;

// The kernel's caches of names and attributes.

/// They are dropped if the guest was idle for this long and they have this size. They are dropped again only after they
/// have grown by the same size and this interval has passed.
pub(super) const SLAB_IDLE: Duration = Duration::from_secs(60);
pub(super) const SLAB_MIN: u64 = 16 * MIB;
pub(super) const SLAB_INTERVAL: Duration = Duration::from_secs(600);

// What the loop may cost.

/// The loop's share of one CPU: in a busy guest, in an idle guest, and when the host wants memory.
pub(super) const SHARE: f64 = 0.005;
pub(super) const SHARE_IDLE: f64 = 0.05;
pub(super) const SHARE_SQUEEZED: f64 = 0.2;
/// The share for creating generations alone, which is useful only later.
pub(super) const SHARE_AGING: f64 = 0.0025;

/// The shortest time between two rounds: usually, when there is nothing to do, when there is more to take, when the
/// host wants memory.
pub(super) const PAUSE: Duration = Duration::from_secs(2);
pub(super) const PAUSE_IDLE: Duration = Duration::from_secs(10);
pub(super) const PAUSE_MORE: Duration = Duration::from_secs(1);
pub(super) const PAUSE_SQUEEZED: Duration = Duration::from_millis(50);
/// The first round waits until the machine has started.
pub(super) const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// The pause after a round that failed.
pub(super) const PAUSE_FAILED: Duration = Duration::from_secs(10);

// Free memory in large blocks.

/// Free blocks of this order and larger are reported to the host: 2 MiB. Memory that a busy guest frees in smaller
/// blocks is soon in use again, and reporting it would break up the host's huge pages.
pub(super) const REPORTED_ORDER: u8 = 9;
/// The same in an idle guest, and while the host wants memory: 64 KiB.
pub(super) const REPORTED_ORDER_SMALL: u8 = 4;
/// Interval between two compactions: usually, and while the host wants memory.
pub(super) const COMPACTION_INTERVAL: Duration = Duration::from_secs(60);
pub(super) const COMPACTION_INTERVAL_SQUEEZED: Duration = Duration::from_secs(30);
/// The smallest amount of fragmented memory worth a compaction, in bytes and as a fraction of memory.
pub(super) const FRAGMENTED_MIN: u64 = 8 * MIB;
pub(super) const FRAGMENTED_PART: u64 = 64;

// Swap, protection, zones.

/// The most swap devices. Each is at least as large as all earlier ones together, so this allows growth by a factor of
/// 2,048.
pub(super) const SWAP_DEVICES_MAX: usize = 12;
/// Swap may be smaller than memory by this part of itself before a device is added.
pub(super) const SWAP_SLACK_PART: u64 = 4;
/// Containers in total are protected from reclaim up to this fraction of memory.
pub(super) const CONTAINERS_PART: u64 = 4;
/// The kernel's zones are short when less than this fraction of their memory is obtainable. With a third, a guest that
/// swaps to zram would count as short, and the runner would squeeze the other guests for it.
pub(super) const OBTAINABLE_PART: u64 = 4;

// Reports.

/// Interval between two readings: usually, and when memory is short.
pub(super) const TICK: Duration = Duration::from_secs(1);
pub(super) const TICK_SHORT: Duration = Duration::from_millis(200);
/// The longest time between two reports.
pub(super) const REPORT_INTERVAL_MAX: Duration = Duration::from_secs(10);
/// A change by this fraction of memory causes a report.
pub(super) const NOTICEABLE_PART: u64 = 50;
/// How long memory counts as short after a stall.
pub(super) const STALLED: Duration = Duration::from_secs(1);
/// Memory is short if less than this fraction is available, within these bounds in bytes.
pub(super) const SHORT_PART: u64 = 8;
pub(super) const SHORT_MIN: u64 = 96 * MIB;
pub(super) const SHORT_MAX: u64 = 512 * MIB;
/// Asks the kernel for an event when some task has waited for memory for 50 ms within half a second, in µs
/// (Documentation/accounting/psi.rst). The terminating zero byte is part of the string. While no task waits, the
/// trigger costs the kernel nothing.
pub(super) const STALL_TRIGGER: &[u8] = b"some 50000 500000\0";
/// The most records of the kernel's log that are read at once; the rest is read next time.
pub(super) const LOG_RECORDS_MAX: usize = 10_000;
