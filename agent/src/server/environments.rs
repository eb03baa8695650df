//! `/v1/environments`

use std::sync::Arc;

use axum::Json;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use garret_api::ProblemDetails;
use garret_api::agent::{EnvironmentSpec, EnvironmentStatus, Progress};
use garret_http::{Body, Refusal, lines};

use super::Agent;
use super::machine::session;
use crate::workspaces;

/// Returns progress as newline-delimited JSON. If the client closes the connection, the work continues.
#[utoipa::path(
    put,
    path = "/v1/environments/{id}",
    operation_id = "up_environment",
    params(("id" = String, Path, description = "The environment's id.")),
    request_body = EnvironmentSpec,
    responses(
        (status = 200, description = "Progress, one value per line.", body = Progress, content_type = "application/x-ndjson"),
        (status = 400, body = ProblemDetails),
        (status = 409, body = ProblemDetails),
    )
)]
pub(super) async fn up(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
    Body(spec): Body<EnvironmentSpec>,
) -> Result<Response, Refusal> {
    workspaces::check_name(&spec.share)?;
    let progress = agent.environments.up(&id, spec).await?;
    Ok(lines(stream::unfold(progress, async |mut progress| Some((progress.recv().await?, progress)))))
}

#[utoipa::path(
    get,
    path = "/v1/environments",
    operation_id = "list_environments",
    responses((status = 200, body = Vec<EnvironmentStatus>))
)]
pub(super) async fn list(State(agent): State<Arc<Agent>>) -> Json<Vec<EnvironmentStatus>> {
    Json(agent.environments.list().await)
}

#[utoipa::path(
    get,
    path = "/v1/environments/{id}",
    operation_id = "get_environment",
    params(("id" = String, Path, description = "The environment's id.")),
    responses((status = 200, body = EnvironmentStatus), (status = 404, body = ProblemDetails))
)]
pub(super) async fn get(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
) -> Result<Json<EnvironmentStatus>, Refusal> {
    Ok(Json(agent.environments.get(&id).await?))
}

#[utoipa::path(
    post,
    path = "/v1/environments/{id}/stop",
    operation_id = "stop_environment",
    params(("id" = String, Path, description = "The environment's id.")),
    responses((status = 204, description = "Its container has stopped."), (status = 404, body = ProblemDetails))
)]
pub(super) async fn stop(State(agent): State<Arc<Agent>>, Path(id): Path<String>) -> Result<StatusCode, Refusal> {
    agent.environments.stop(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(
    delete,
    path = "/v1/environments/{id}",
    operation_id = "delete_environment",
    params(("id" = String, Path, description = "The environment's id.")),
    responses((status = 204, description = "Its container is removed."), (status = 404, body = ProblemDetails))
)]
pub(super) async fn delete(State(agent): State<Arc<Agent>>, Path(id): Path<String>) -> Result<StatusCode, Refusal> {
    agent.environments.delete(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(
    get,
    path = "/v1/environments/{id}/log",
    operation_id = "get_environment_log",
    params(("id" = String, Path, description = "The environment's id.")),
    responses((status = 200, description = "The last output of the container.", body = String), (status = 404, body = ProblemDetails))
)]
pub(super) async fn log(State(agent): State<Arc<Agent>>, Path(id): Path<String>) -> Result<Response, Refusal> {
    let log = agent.environments.log(&id).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], log).into_response())
}

#[utoipa::path(
    get,
    path = "/v1/environments/{id}/exec",
    operation_id = "exec_in_environment",
    params(("id" = String, Path, description = "The environment's id.")),
    responses((status = 101, description = "A WebSocket to a process in the devcontainer."))
)]
pub(super) async fn exec(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
    upgrade: WebSocketUpgrade,
) -> Response {
    session(agent, upgrade, async move |agent: Arc<Agent>, request| agent.environments.exec(&id, request).await)
}
