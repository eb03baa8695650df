//! The size of a run: for the regression gate, for `make bench` on the emulated host, and for bare metal.

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The profile of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Size {
    /// Only the counts that repeat, once: for the regression gate
    Gate,
    /// All benches in half an hour on the emulated host
    #[default]
    Quick,
    /// All benches on bare metal, for hours
    Full,
}

/// The numbers of a [`Size`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// Virtual CPUs of each machine.
    pub vcpus: u8,
    /// Memory of each machine, in MiB.
    pub memory_mib: u32,
    /// Samples of a bench whose runs are short.
    pub short_rounds: usize,
    /// Samples of the other benches.
    pub long_rounds: usize,
    /// How many machines boot at once, for each of the counts.
    pub at_once: &'static [usize],
    /// Idle machines of each subject that run together.
    pub idle_machines: usize,
    /// How long they are idle before they are measured.
    pub idle: Duration,
    /// Small files of a source tree.
    pub files: usize,
    /// Size of the file that is read and written in large blocks, in MiB.
    pub file_mib: u32,
    /// How long each fio job and each transfer runs, in seconds.
    pub transfer_s: u32,
    /// Round trips of a request/response test.
    pub round_trips: u32,
    /// Memory that a guest takes and frees, in MiB: a multiple of 128, the block size of Linux's memory hotplug. The
    /// same amount comes by virtio-mem.
    pub fill_mib: u32,
    /// The longest time that one machine may take for its work.
    pub deadline: Duration,
}

impl Size {
    pub(crate) fn scale(self) -> Scale {
        match self {
            Size::Gate => Scale {
                vcpus: 1,
                memory_mib: 512,
                short_rounds: 1,
                long_rounds: 1,
                at_once: &[],
                idle_machines: 1,
                idle: Duration::from_secs(5),
                files: 200,
                file_mib: 8,
                transfer_s: 1,
                round_trips: 100,
                fill_mib: 128,
                deadline: Duration::from_secs(120),
            },
            Size::Quick => Scale {
                vcpus: 2,
                memory_mib: 512,
                short_rounds: 5,
                long_rounds: 2,
                at_once: &[4],
                idle_machines: 2,
                idle: Duration::from_secs(60),
                files: 150,
                file_mib: 32,
                transfer_s: 1,
                round_trips: 500,
                fill_mib: 256,
                deadline: Duration::from_secs(240),
            },
            Size::Full => Scale {
                vcpus: 4,
                memory_mib: 2048,
                short_rounds: 20,
                long_rounds: 10,
                at_once: &[4, 16],
                idle_machines: 8,
                idle: Duration::from_secs(60),
                files: 20_000,
                file_mib: 1024,
                transfer_s: 20,
                round_trips: 50_000,
                fill_mib: 1536,
                deadline: Duration::from_secs(1800),
            },
        }
    }

    /// Whether the first round of a long bench is only a warm-up. In the quick size the many rounds of the short bench
    /// before it have warmed the host up.
    pub(crate) fn warms_up(self) -> bool {
        self == Size::Full
    }

    /// Whether a round counts system calls, which slows each of them a little. At full size every second round counts,
    /// and its times are dropped. Other sizes have too few rounds for that, and all subjects are slowed equally.
    pub(crate) fn counts(self, round: usize) -> bool {
        self != Size::Full || round % 2 == 1
    }
}
