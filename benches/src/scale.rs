//! How large a run is: what fits the regression gate, `make bench` in the emulated host, and bare metal.

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The profile of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Size {
    /// Only the counts that repeat, once: what the regression gate reads
    Gate,
    /// Scaled so that all of it takes half an hour in the emulated host
    #[default]
    Quick,
    /// As a person would measure bare metal: hours
    Full,
}

/// The numbers behind a [`Size`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// Virtual CPUs of each machine.
    pub vcpus: u8,
    /// Memory of each machine, in MiB.
    pub memory_mib: u32,
    /// Samples kept of benches whose runs are short.
    pub short_rounds: usize,
    /// Samples kept of the others.
    pub long_rounds: usize,
    /// How many machines boot at once, for each of the counts.
    pub at_once: &'static [usize],
    /// Idle machines of each subject that are up together.
    pub idle_machines: usize,
    /// How long they idle before they are measured.
    pub idle: Duration,
    /// Small files of a source tree.
    pub files: usize,
    /// A file that is read and written in large pieces, in MiB.
    pub file_mib: u32,
    /// How long each fio job and each transfer runs, in seconds.
    pub transfer_s: u32,
    /// Round trips of a request/response test.
    pub round_trips: u32,
    /// Memory a guest takes and gives back, in MiB: a multiple of 128, what Linux plugs at once. As much comes by
    /// virtio-mem.
    pub fill_mib: u32,
    /// Longest that one machine may take for its work.
    pub deadline: Duration,
}

impl Size {
    /// The numbers.
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

    /// Whether the first round of a long bench is only there to warm up. In the quick size the many rounds of the short bench
    /// that comes first have warmed the host.
    pub(crate) fn warms_up(self) -> bool {
        self == Size::Full
    }

    /// Whether a round counts system calls, which makes each of them a little slower. At full size every second round counts,
    /// and its times are dropped; else there are too few rounds for that, and all subjects bear the same.
    pub(crate) fn counts(self, round: usize) -> bool {
        self != Size::Full || round % 2 == 1
    }
}
