use std::sync::Arc;

use axum::Json;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use garret_api::agent::{EnvironmentSpec, EnvironmentStatus};

use super::machine::session;
use super::{Agent, Body, Refusal};
use crate::workspaces;

/// Newline-delimited progress. Ending the request does not end the work.
pub(super) async fn up(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
    Body(spec): Body<EnvironmentSpec>,
) -> Result<Response, Refusal> {
    workspaces::check_name(&spec.share)?;
    let lines = agent.environments.up(&id, spec).await?;
    Ok(super::lines(stream::unfold(lines, async |mut lines| Some((lines.recv().await?, lines)))))
}

pub(super) async fn list(State(agent): State<Arc<Agent>>) -> Json<Vec<EnvironmentStatus>> {
    Json(agent.environments.list().await)
}

pub(super) async fn get(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
) -> Result<Json<EnvironmentStatus>, Refusal> {
    Ok(Json(agent.environments.get(&id).await?))
}

pub(super) async fn stop(State(agent): State<Arc<Agent>>, Path(id): Path<String>) -> Result<StatusCode, Refusal> {
    agent.environments.stop(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn delete(State(agent): State<Arc<Agent>>, Path(id): Path<String>) -> Result<StatusCode, Refusal> {
    agent.environments.delete(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn log(State(agent): State<Arc<Agent>>, Path(id): Path<String>) -> Result<Response, Refusal> {
    let log = agent.environments.log(&id).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], log).into_response())
}

pub(super) async fn exec(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
    upgrade: WebSocketUpgrade,
) -> Response {
    session(agent, upgrade, async move |agent: Arc<Agent>, request| agent.environments.exec(&id, request).await)
}
