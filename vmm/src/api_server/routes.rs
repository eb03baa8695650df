//! The routes of the API, with their bodies and statuses.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use garret_api::Problem;
use garret_api::vmm::{MachineDescription, MemoryInfo, MemoryTarget, Metrics};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::control::{Command, Event, Events, Refused, Reply};

/// The largest body of a request, in bytes; every body of this API is much smaller.
const BODY_MAX: usize = 16 << 10;

/// The API, which sends its commands to `events`.
pub(super) fn router(events: Events) -> Router {
    Router::new()
        .route("/v1/machine", get(describe))
        .route("/v1/pause", post(pause))
        .route("/v1/resume", post(resume))
        .route("/v1/power-button", post(power_button))
        .route("/v1/shutdown", post(shutdown))
        .route("/v1/memory", get(memory).put(set_memory))
        .route("/v1/metrics", get(metrics))
        .fallback(|| async {
            problem(StatusCode::NOT_FOUND, "not-found", "there is no such path; see GET /v1/machine")
        })
        .method_not_allowed_fallback(|| async {
            problem(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "this path does not take this method")
        })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(events)
}

/// What it is built from and what it does.
#[utoipa::path(get, path = "/v1/machine", responses((status = 200, body = MachineDescription)))]
pub(super) async fn describe(State(events): State<Events>) -> Response {
    ask(&events, Command::Describe).await
}

/// Stops the vCPUs, then the devices. Pausing a paused machine does nothing.
#[utoipa::path(post, path = "/v1/pause", responses((status = 204), (status = 409, body = Problem)))]
pub(super) async fn pause(State(events): State<Events>) -> Response {
    order(&events, Command::Pause).await
}

/// Goes on. Resuming a running machine does nothing.
#[utoipa::path(post, path = "/v1/resume", responses((status = 204), (status = 409, body = Problem)))]
pub(super) async fn resume(State(events): State<Events>) -> Response {
    order(&events, Command::Resume).await
}

/// Presses the power button: asks the guest to power off. The guest may take its time, and ignores a press before its kernel is
/// up: press again. A paused guest sees the press when it resumes.
#[utoipa::path(post, path = "/v1/power-button", responses((status = 202), (status = 409, body = Problem)))]
pub(super) async fn power_button(State(events): State<Events>) -> Response {
    match send(&events, Command::PowerButton).await {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err(response) => response,
    }
}

/// Ends the machine at once, as pulling its plug would; what it has flushed to its disks is there.
#[utoipa::path(post, path = "/v1/shutdown", responses((status = 204), (status = 409, body = Problem)))]
pub(super) async fn shutdown(State(events): State<Events>) -> Response {
    order(&events, Command::Shutdown).await
}

/// Memory that is plugged, and how much shall be.
#[utoipa::path(get, path = "/v1/memory", responses((status = 200, body = MemoryInfo)))]
pub(super) async fn memory(State(events): State<Events>) -> Response {
    ask(&events, Command::Memory).await
}

/// Asks the guest to plug memory, or to unplug it; it does when it can, and never has more than was asked or it had before.
#[utoipa::path(put, path = "/v1/memory", request_body = MemoryTarget,
    responses((status = 200, body = MemoryInfo), (status = 400, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn set_memory(State(events): State<Events>, body: Bytes) -> Response {
    ask_with(&events, &body, Command::SetMemory).await
}

/// Counters since the start.
#[utoipa::path(get, path = "/v1/metrics", responses((status = 200, body = Metrics)))]
pub(super) async fn metrics(State(events): State<Events>) -> Response {
    ask(&events, Command::Metrics).await
}

/// Sends a command; its response has a body.
async fn ask<T: Serialize>(events: &Events, command: impl FnOnce(Reply<T>) -> Command) -> Response {
    match send(events, command).await {
        Ok(body) => json(StatusCode::OK, &body),
        Err(response) => response,
    }
}

/// Sends a command made from a body. The body's type rejects unknown fields; the parser's message has line and column.
async fn ask_with<B: DeserializeOwned, T: Serialize>(
    events: &Events,
    body: &[u8],
    command: impl FnOnce(B, Reply<T>) -> Command,
) -> Response {
    match serde_json::from_slice(body) {
        Ok(body) => ask(events, |reply| command(body, reply)).await,
        Err(error) => problem(StatusCode::BAD_REQUEST, "invalid", format!("body: {error}")),
    }
}

/// Sends a command; its response has no body.
async fn order(events: &Events, command: impl FnOnce(Reply<()>) -> Command) -> Response {
    match send(events, command).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(response) => response,
    }
}

async fn send<T>(events: &Events, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Response> {
    let (reply, answer) = oneshot::channel();
    events.send(Event::Command(command(reply)));
    match answer.await {
        Ok(result) => result.map_err(|refused| refusal(&refused)),
        Err(_) => Err(problem(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "the machine has ended")),
    }
}

fn refusal(refused: &Refused) -> Response {
    let (status, code) = match refused {
        Refused::State(..) => (StatusCode::CONFLICT, "conflict"),
        Refused::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid"),
        Refused::Failed(_) => (StatusCode::CONFLICT, "busy"),
    };
    problem(status, code, refused.to_string())
}

fn problem(status: StatusCode, code: &str, message: impl Into<String>) -> Response {
    json(status, &Problem::new(code, message))
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let body = serde_json::to_vec(body).unwrap_or_default(); // our types always serialize
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
#[path = "routes_test.rs"]
mod tests;
