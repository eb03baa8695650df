//! `/v1/top`: memory figures.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use garret_api::runner::Top;
use garret_api::{Code, ProblemDetails};

use super::{Peer, Refusal};
use crate::daemon::Daemon;
use crate::daemon::memory::Snapshot;

#[utoipa::path(
    get,
    path = "/v1/top", operation_id = "get_top",
    responses(
        (status = 200, description = "Memory of the host and of each machine that the caller may see.", body = Top),
        (status = 503, description = "Nothing has been measured yet.", body = ProblemDetails)
    )
)]
pub(super) async fn show(State(daemon): State<Arc<Daemon>>, peer: Peer) -> Result<Json<Top>, Refusal> {
    Ok(Json(snapshot(&daemon).await?.top(|uid| peer.may(uid))))
}

/// The figures of the last cycle.
pub(super) async fn snapshot(daemon: &Daemon) -> Result<Arc<Snapshot>, Refusal> {
    let missing =
        || Refusal::new(Code::Unavailable, "the host's memory has not been measured yet: see the daemon's log");
    daemon.memory.snapshot().await.ok_or_else(missing)
}
