//! What the arbiter sees and what it may order: plain values. All figures are in bytes unless stated otherwise.

use std::collections::BTreeMap;

use garret_api::MachineId;
use garret_api::runner::Means;

/// Measurements of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HostView {
    /// Total memory.
    pub total: u64,
    /// What a program could get without swapping (`MemAvailable`).
    pub available: u64,
    pub swap_total: u64,
    pub swap_free: u64,
    /// Reserved for the host itself; the rest is the machines' capacity.
    pub reserve: u64,
    /// Memory pressure (`some avg10`, per cent). `None`: the kernel does not report it, and only free memory counts.
    pub pressure_some: Option<f64>,
    /// The same for all tasks (`full avg10`).
    pub pressure_full: Option<f64>,
}

/// One running machine. Values that begin with "the guest says" are trusted only within what the host has measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MachineView {
    pub id: MachineId,
    /// The most memory it can have.
    pub promised: u64,
    /// Memory that it can always have, whatever other machines do.
    pub guaranteed: u64,
    /// Its weight when memory beyond the guarantees is shared, 1 to 10,000.
    pub weight: u32,
    /// Memory at boot, which is the minimum of its limit.
    pub boot: u64,
    /// What its guest may use: memory at boot and what it may plug.
    pub limit: u64,
    /// Memory at boot and plugged memory. Follows `limit` as far as the guest's driver does what it is asked.
    pub plugged: u64,
    /// Host memory that it holds (the anonymous memory of its control group).
    pub resident: u64,
    /// Its memory that the host has swapped out.
    pub swapped: u64,
    /// CPUs it used since the last cycle, measured by the host: 1.0 is one whole CPU.
    pub cpus: f64,
    /// What the guest says; `None`: its agent is silent.
    pub guest: Option<GuestView>,
    /// Its vCPUs are paused.
    pub paused: bool,
    /// A client waits for it (a command or terminal runs, it is starting or stopping): it must not be paused.
    pub needed: bool,
}

impl MachineView {
    /// A machine that holds nothing and was promised nothing.
    pub fn new(id: MachineId) -> Self {
        Self {
            id,
            promised: 0,
            guaranteed: 0,
            weight: 0,
            boot: 0,
            limit: 0,
            plugged: 0,
            resident: 0,
            swapped: 0,
            cpus: 0.0,
            guest: None,
            paused: false,
            needed: false,
        }
    }
}

/// The figures that a guest reports about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GuestView {
    /// Unused memory.
    pub free: u64,
    /// What a program could get without swapping.
    pub available: u64,
    /// Memory that no process has touched for a minute.
    pub cold: u64,
    /// Memory pressure (`some avg10`, per cent).
    pub pressure_some: Option<f64>,
    /// Memory is short now.
    pub short: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// Let its guest plug up to this much, including memory at boot.
    Limit {
        id: MachineId,
        /// The new limit.
        bytes: u64,
    },
    /// Ask its agent to shrink the guest to this size; `None`: stop shrinking.
    Squeeze {
        id: MachineId,
        /// The amount of memory in use to reach.
        target: Option<u64>,
    },
    /// Swap out this much of its memory, from the host.
    Swap {
        id: MachineId,
        /// The amount.
        bytes: u64,
    },
    Pause {
        id: MachineId,
    },
    Resume {
        id: MachineId,
    },
}

/// A change to report to people.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    pub id: MachineId,
    /// The means by which memory is taken now.
    pub means: Means,
    /// As in [`garret_api::runner::EventKind::Squeeze`].
    pub bytes: u64,
    /// The reason, in one line with figures.
    pub reason: String,
}

/// What the arbiter decided in one cycle.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// The host memory that each machine should hold.
    pub targets: BTreeMap<MachineId, u64>,
    /// The memory that each machine seems to use, as far as its guest is trusted.
    pub working_sets: BTreeMap<MachineId, u64>,
    /// The means by which memory is taken from a machine; absent if none.
    pub squeezed: BTreeMap<MachineId, Means>,
    /// Orders to carry out now, in this sequence.
    pub orders: Vec<Order>,
    /// Changes to report.
    pub notices: Vec<Notice>,
}
