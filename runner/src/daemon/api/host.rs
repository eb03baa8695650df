//! `/v1/host`

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use garret_api::runner::HostInfo;

use super::{Peer, Refusal};
use crate::daemon::Daemon;
use crate::daemon::promises::promises;
use crate::daemon::state::machines;

#[utoipa::path(get, path = "/v1/host", operation_id = "get_host", responses((status = 200, description = "The host's CPUs, its memory, and the memory promised to machines.", body = HostInfo)))]
pub(super) async fn show(State(daemon): State<Arc<Daemon>>, _peer: Peer) -> Result<Json<HostInfo>, Refusal> {
    let host = daemon.host();
    let machines = daemon.read(machines::all).await?;
    Ok(Json(HostInfo {
        version: env!("CARGO_PKG_VERSION").into(),
        cpus: host.cpus,
        memory_mib: host.memory_mib,
        promised_mib: promises(&machines, daemon.started(), daemon.config.machine.memory_overhead_mib).promised_mib,
    }))
}
