use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::stream;
use garret_api::agent::MemorySqueeze;

use super::{Agent, Body, Refusal};

/// Newline-delimited reports, until the caller leaves.
pub(super) async fn follow(State(agent): State<Arc<Agent>>) -> Response {
    super::lines(stream::unfold(agent.memory.follow(), async |mut reports| {
        reports.changed().await.ok()?;
        let report = reports.borrow_and_update().clone();
        Some((report, reports))
    }))
}

pub(super) async fn squeeze(
    State(agent): State<Arc<Agent>>,
    Body(squeeze): Body<MemorySqueeze>,
) -> Result<StatusCode, Refusal> {
    agent.memory.squeeze(squeeze)?;
    Ok(StatusCode::NO_CONTENT)
}
