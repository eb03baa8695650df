//! `/v1/operations`

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use garret_api::runner::Operation;
use garret_api::{Code, ProblemDetails};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};
use utoipa::IntoParams;

use super::peer::Action;
use super::{Peer, Refusal};
use crate::daemon::Daemon;
use crate::daemon::state::operations;
use garret_http::Parameters;

/// The longest wait of one request, in seconds.
const WAIT_MAX_S: u32 = 600;

/// The query parameters of a request for one operation.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct OperationParameters {
    /// Wait until the operation has ended, for at most this many seconds; the maximum is 600.
    #[serde(default)]
    wait: u32,
}

#[utoipa::path(
    get,
    path = "/v1/operations", operation_id = "list_operations",
    responses((
        status = 200,
        description = "The last 256 operations that the caller may see, the newest first.",
        body = Vec<Operation>
    ))
)]
pub(super) async fn list(State(daemon): State<Arc<Daemon>>, peer: Peer) -> Result<Json<Vec<Operation>>, Refusal> {
    let owner = (!peer.allows(Action::SeeAll)).then_some(peer.uid);
    Ok(Json(daemon.read(move |db| operations::newest(db, owner)).await?))
}

#[utoipa::path(
    get,
    path = "/v1/operations/{id}", operation_id = "get_operation",
    params(("id" = String, Path, description = "The operation's id."), OperationParameters),
    responses(
        (status = 200, description = "The operation. It has no outcome while it is in progress.", body = Operation),
        (status = 404, body = ProblemDetails)
    )
)]
pub(super) async fn show(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(id): Path<String>,
    Parameters(parameters): Parameters<OperationParameters>,
) -> Result<Json<Operation>, Refusal> {
    let until = Instant::now() + Duration::from_secs(parameters.wait.min(WAIT_MAX_S).into());
    let mut changes = daemon.changes.subscribe();
    loop {
        changes.borrow_and_update();
        let asked = id.clone();
        let found = daemon.read(move |db| operations::get(db, &asked)).await?;
        let operation = found.filter(|operation| peer.may(operation.uid)).ok_or_else(|| {
            Refusal::new(Code::NotFound, format!("there is no operation {id}: `garret operations` lists them"))
        })?;
        if operation.outcome.is_some() || timeout_at(until, changes.changed()).await.is_err() {
            return Ok(Json(operation));
        }
    }
}
