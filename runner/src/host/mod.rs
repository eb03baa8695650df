//! The parts of a machine on its host: a jail for its VMM, a control group, a network, its workspaces.
//!
//! Every function here blocks (mounts, short-lived programs such as `ip` and `nft`) and needs root; async code calls it
//! from blocking threads. Every function is idempotent, so a runner that was killed during one can run it again.

pub mod cgroup;
mod descriptors;
mod idmap;
pub(crate) mod jail;
mod launch;
mod meminfo;
pub(crate) mod network;
mod paths;
mod program;
mod revocation;
mod run_folder;
pub(crate) mod share;
mod sweep;
mod workspaces;

pub(crate) use cgroup::{Usage, oom_kills, protect, reclaim, usage};
pub(crate) use launch::{Artifacts, Launch, Rates, clean_up, launch, started};
pub(crate) use meminfo::meminfo;
pub(crate) use network::{Allow, NetworkConfig, Slot, guest_network, prepare as prepare_network};
pub(crate) use paths::MachinePaths;
pub(crate) use run_folder::remove as remove_run_folder;
pub(crate) use sweep::{remove_unknown, unknown_machines};
pub(crate) use workspaces::{forget_revocation, revoke_workspace};

/// Prepares the host for machines: the packet filter and forwarding. Every daemon calls this once at its start.
///
/// # Errors
/// `nft` is missing or refuses the rules, or the process is not root.
pub(crate) fn setup_host(network: &NetworkConfig) -> anyhow::Result<()> {
    cgroup::prepare()?;
    network::prepare(network)
}
