//! `/v1/memory`

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::stream;
use garret_api::ProblemDetails;
use garret_api::agent::{MemoryReport, MemorySqueeze};
use garret_http::{Body, Refusal, lines};

use super::Agent;

/// Returns reports as newline-delimited JSON, until the client closes the connection.
#[utoipa::path(
    get,
    path = "/v1/memory",
    operation_id = "follow_memory",
    responses((status = 200, description = "Reports, one per line.", body = MemoryReport,
        content_type = "application/x-ndjson"))
)]
pub(super) async fn follow(State(agent): State<Arc<Agent>>) -> Response {
    lines(stream::unfold(agent.memory.follow(), async |mut reports| {
        reports.changed().await.ok()?;
        let report = reports.borrow_and_update().clone();
        Some((report, reports))
    }))
}

#[utoipa::path(
    put,
    path = "/v1/memory",
    operation_id = "squeeze_memory",
    request_body = MemorySqueeze,
    responses((status = 204, description = "The target applies."), (status = 400, body = ProblemDetails))
)]
pub(super) async fn squeeze(
    State(agent): State<Arc<Agent>>,
    Body(squeeze): Body<MemorySqueeze>,
) -> Result<StatusCode, Refusal> {
    agent.memory.squeeze(squeeze)?;
    Ok(StatusCode::NO_CONTENT)
}
