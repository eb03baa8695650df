//! What the machines' VMMs count: exits of the vCPUs, and requests, bytes and faults of the devices.
//!
//! A VMM that its guest has taken over may answer anything. Its answer is bounded, and only the counters whose names
//! are known here are kept, so a machine has a fixed number of series.

mod render;
#[cfg(test)]
mod tests;

use std::time::Duration;

use futures_util::future::join_all;
use garret_api::MachineId;
use garret_api::client::{self, Client};
use garret_api::vmm::Metrics;

pub(super) use render::render;

use super::Daemon;
use super::state::{StoreError, machines};

/// How long a VMM may take to answer. All are asked at once: one that hangs delays the answer by no more than this.
const TIMEOUT: Duration = Duration::from_secs(1);
/// The largest answer, in bytes. A VMM's is below 4 KiB.
const ANSWER_MAX: usize = 64 << 10;

/// The devices of a machine that the runner starts.
const DEVICES: [&str; 9] = ["balloon", "block0", "console", "fs0", "mem", "net0", "pmem", "rng", "vsock"];
/// The reasons of exits (`vmm/src/vcpu/exits.rs`).
const EXITS: [&str; 9] =
    ["hlt", "internal", "interrupted", "io", "io_unclaimed", "mmio", "mmio_unclaimed", "other", "shutdown"];

/// One VMM's counters with the machine's developer; `None`: it did not answer.
pub(super) type OfMachine = (String, Option<Metrics>);

/// Asks the VMMs of all machines.
pub(super) async fn of_all(daemon: &Daemon) -> Result<Vec<OfMachine>, StoreError> {
    let rows = daemon.read(machines::all).await?;
    let answers = rows.into_iter().filter(|row| row.vmm.is_some()).map(async |row| {
        let metrics = of_machine(daemon, row.id).await;
        if let Err(error) = &metrics {
            tracing::debug!(machine = %row.id, "no metrics: {error}");
        }
        (row.developer, metrics.ok())
    });
    Ok(join_all(answers).await)
}

/// Asks the VMM of one machine.
pub(super) async fn of_machine(daemon: &Daemon, machine: MachineId) -> client::Result<Metrics> {
    let vmm: Client = daemon.vmm(machine, TIMEOUT).with_body_max(ANSWER_MAX);
    vmm.get("/v1/metrics").await.map(known)
}

/// Only the counters whose names are known.
fn known(mut metrics: Metrics) -> Metrics {
    metrics.exits.retain(|reason, _| EXITS.contains(&reason.as_str()));
    metrics.devices.retain(|name, _| DEVICES.contains(&name.as_str()));
    metrics
}
