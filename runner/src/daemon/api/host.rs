//! `/v1/host`

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use garret_api::runner::{Desired, HostInfo};

use super::{Peer, Refusal};
use crate::daemon::Daemon;
use crate::daemon::state::{MachineRow, machines};

#[utoipa::path(get, path = "/v1/host", responses((status = 200, description = "The host's figures.", body = HostInfo)))]
pub async fn show(State(daemon): State<Arc<Daemon>>, _peer: Peer) -> Result<Json<HostInfo>, Refusal> {
    let machines = daemon.read(machines::all).await?;
    Ok(Json(HostInfo {
        version: env!("CARGO_PKG_VERSION").into(),
        cpus: daemon.host.cpus,
        memory_mib: daemon.host.memory_mib,
        promised_mib: promised_mib(&machines, u64::from(daemon.config.machine.memory_overhead_mib)),
    }))
}

/// What is promised to the machines that should run, what their VMMs need included.
pub fn promised_mib(machines: &[MachineRow], overhead_mib: u64) -> u64 {
    let running = machines.iter().filter(|machine| machine.desired == Desired::Running && !machine.removed);
    running.map(|machine| u64::from(machine.memory_mib) + overhead_mib).sum()
}
