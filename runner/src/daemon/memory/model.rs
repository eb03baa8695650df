//! What the arbiter knows and what it may order: plain values. All figures are in bytes unless they say otherwise.

use std::collections::BTreeMap;

use garret_api::runner::Means;

/// The host, measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HostView {
    /// Memory.
    pub total: u64,
    /// What a program could get without swapping (`MemAvailable`).
    pub available: u64,
    /// Swap.
    pub swap_total: u64,
    /// Swap that is free.
    pub swap_free: u64,
    /// Kept for the host itself; the rest is the machines' capacity.
    pub reserve: u64,
    /// Memory pressure (`some avg10`, per cent); `None`: this host does not tell, and free memory alone decides.
    pub pressure_some: Option<f64>,
    /// The same of all tasks (`full avg10`).
    pub pressure_full: Option<f64>,
}

/// One running machine. What begins with "the guest says" is never trusted beyond what the host has measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MachineView {
    /// Whose.
    pub uid: u32,
    /// The most it can have.
    pub promised: u64,
    /// Its own whatever the others do.
    pub guaranteed: u64,
    /// Its share of what is left, 1 to 10,000.
    pub weight: u32,
    /// Memory at boot: the least its limit can be.
    pub boot: u64,
    /// What its guest may use: memory at boot and what it may plug.
    pub limit: u64,
    /// Memory at boot and what is plugged; follows `limit` as far as the guest's driver does what it is asked.
    pub plugged: u64,
    /// What it holds of the host's memory (its control group's anonymous memory).
    pub resident: u64,
    /// What the host has swapped out of it.
    pub swapped: u64,
    /// CPUs it used since the last look, measured by the host: 1.0 is one whole CPU.
    pub cpus: f64,
    /// What the guest says; `None`: its agent is silent.
    pub guest: Option<GuestView>,
    /// Its vCPUs are paused.
    pub paused: bool,
    /// A client waits for it (a command or terminal runs, it is starting or stopping): it must not be paused.
    pub needed: bool,
}

/// A guest's own word.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GuestView {
    /// Unused.
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

/// Something to do to a machine.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// Let its guest plug this much: memory at boot included.
    Limit {
        /// Whose machine.
        uid: u32,
        /// The new limit.
        bytes: u64,
    },
    /// Ask its agent to come down to this; `None`: no more.
    Squeeze {
        /// Whose machine.
        uid: u32,
        /// Memory in use to come down to.
        target: Option<u64>,
    },
    /// Swap this much of it out, from the host.
    Swap {
        /// Whose machine.
        uid: u32,
        /// How much.
        bytes: u64,
    },
    /// Let it stand still.
    Pause {
        /// Whose machine.
        uid: u32,
    },
    /// Let it go on.
    Resume {
        /// Whose machine.
        uid: u32,
    },
}

/// A change a person should see.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// Whose machine.
    pub uid: u32,
    /// By which means memory is taken now.
    pub means: Means,
    /// As [`garret_api::runner::Happening::Squeeze`] has it.
    pub bytes: u64,
    /// Why, in one line with numbers.
    pub reason: String,
}

/// What the arbiter decided at one look.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// What each machine should hold of the host's memory.
    pub targets: BTreeMap<u32, u64>,
    /// What each machine seems to use, as far as it is believed.
    pub working_sets: BTreeMap<u32, u64>,
    /// What is being done to a machine; absent: nothing.
    pub squeezed: BTreeMap<u32, Means>,
    /// What to do now, in this order.
    pub orders: Vec<Order>,
    /// What to tell.
    pub notices: Vec<Notice>,
}
