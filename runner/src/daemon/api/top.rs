//! `/v1/top` and `/metrics`: memory figures.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use garret_api::runner::Top;
use garret_api::{Code, ProblemDetails};
use hyper::header;

use super::peer::Action;
use super::{Peer, Refusal};
use crate::daemon::Daemon;
use crate::daemon::memory::{Snapshot, render_metrics};

/// The media type of the Prometheus text format.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

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

#[utoipa::path(
    get,
    path = "/metrics", operation_id = "get_prometheus_metrics",
    responses(
        (status = 200, description = "Memory of the host and of all machines, in Prometheus' text format.", body = String),
        (status = 403, body = ProblemDetails),
        (status = 503, description = "Nothing has been measured yet.", body = ProblemDetails)
    )
)]
pub(super) async fn metrics(State(daemon): State<Arc<Daemon>>, peer: Peer) -> Result<Response, Refusal> {
    if !peer.allows(Action::SeeAll) {
        return Err(Refusal::new(
            Code::Forbidden,
            "only root and members of the group garret may read all developers' figures",
        ));
    }
    let text = render_metrics(&*snapshot(&daemon).await?);
    Ok(([(header::CONTENT_TYPE, PROMETHEUS)], text).into_response())
}

async fn snapshot(daemon: &Daemon) -> Result<Arc<Snapshot>, Refusal> {
    let missing =
        || Refusal::new(Code::Unavailable, "the host's memory has not been measured yet: see the daemon's log");
    daemon.memory.snapshot().await.ok_or_else(missing)
}
