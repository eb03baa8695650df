//! `/metrics` for an operator's Prometheus, and what the VMM of one machine counts.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use garret_api::vmm::Metrics;
use garret_api::{Code, ProblemDetails};
use hyper::header;

use super::peer::Action;
use super::target::find;
use super::{Peer, Refusal, top};
use crate::daemon::memory::render_metrics;
use crate::daemon::prometheus::{MEDIA_TYPE, Page};
use crate::daemon::{Daemon, vmm_metrics};

#[utoipa::path(
    get,
    path = "/metrics", operation_id = "get_prometheus_metrics",
    responses(
        (status = 200, description = "Memory figures, and what each VMM counts, of all machines in Prometheus' text format.", body = String),
        (status = 403, body = ProblemDetails),
        (status = 503, description = "Nothing has been measured yet.", body = ProblemDetails)
    )
)]
pub(super) async fn of_all(State(daemon): State<Arc<Daemon>>, peer: Peer) -> Result<Response, Refusal> {
    if !peer.allows(Action::SeeAll) {
        return Err(Refusal::new(
            Code::Forbidden,
            "only root and members of the group garret may read all developers' figures",
        ));
    }
    let (memory, vmms) = tokio::join!(top::snapshot(&daemon), vmm_metrics::of_all(&daemon));
    let mut page = Page::default();
    render_metrics(&mut page, &*memory?);
    vmm_metrics::render(&mut page, &vmms?);
    Ok(([(header::CONTENT_TYPE, MEDIA_TYPE)], page.into_text()).into_response())
}

#[utoipa::path(
    get,
    path = "/v1/machines/{machine}/metrics", operation_id = "get_machine_metrics",
    params(("machine" = String, Path, description = "The machine's id, or its developer's account name or uid.")),
    responses(
        (status = 200, description = "What its VMM has counted since its start.", body = Metrics),
        (status = 404, body = ProblemDetails),
        (status = 409, description = "The machine has no VMM.", body = ProblemDetails),
        (status = 503, description = "The VMM does not answer.", body = ProblemDetails)
    )
)]
pub(super) async fn of_machine(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(name): Path<String>,
) -> Result<Json<Metrics>, Refusal> {
    let machine = find(&daemon, peer, &name).await?;
    if machine.vmm.is_none() {
        return Err(Refusal::new(Code::Conflict, format!("the machine does not run ({})", machine.reason)));
    }
    let metrics = vmm_metrics::of_machine(&daemon, machine.id).await;
    Ok(Json(metrics.map_err(|error| Refusal::new(Code::Unavailable, format!("the VMM does not answer: {error}")))?))
}
