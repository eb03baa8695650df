//! The routes of the API, with their bodies and statuses.

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use garret_api::vmm::{MachineDescription, MemoryInfo, MemoryTarget, Metrics};
use garret_api::{Code, Problem, ProblemDetails};
use garret_http::{Body, Refusal, no_such_method};
use tokio::sync::oneshot;

use crate::control::{Command, Event, Events, Refused, Reply};

/// The largest body of a request, in bytes; every body of this API is much smaller.
pub(super) const BODY_MAX: usize = 16 << 10;

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
        .fallback(async || Refusal::new(Code::NotFound, "there is no such path; see GET /v1/machine"))
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(events)
}

/// Returns the configuration and the state.
#[utoipa::path(get, path = "/v1/machine", operation_id = "get_machine", responses((status = 200, body = MachineDescription)))]
pub(super) async fn describe(State(events): State<Events>) -> Result<Json<MachineDescription>, Refusal> {
    ask(&events, Command::Describe).await
}

/// Pauses the vCPUs, then the devices. Pausing a paused machine does nothing.
#[utoipa::path(post, path = "/v1/pause", operation_id = "pause_machine", responses((status = 204), (status = 409, body = ProblemDetails)))]
pub(super) async fn pause(State(events): State<Events>) -> Result<StatusCode, Refusal> {
    order(&events, Command::Pause).await
}

/// Resumes the devices and the vCPUs. Resuming a running machine does nothing.
#[utoipa::path(post, path = "/v1/resume", operation_id = "resume_machine", responses((status = 204), (status = 409, body = ProblemDetails)))]
pub(super) async fn resume(State(events): State<Events>) -> Result<StatusCode, Refusal> {
    order(&events, Command::Resume).await
}

/// Presses the power button, which asks the guest to power off. The guest may take some time. It ignores a press before
/// its kernel has booted: press again. A paused guest sees the press when it resumes.
#[utoipa::path(post, path = "/v1/power-button", operation_id = "press_power_button", responses((status = 202), (status = 409, body = ProblemDetails)))]
pub(super) async fn power_button(State(events): State<Events>) -> Result<StatusCode, Refusal> {
    send(&events, Command::PowerButton).await.map(|()| StatusCode::ACCEPTED)
}

/// Ends the machine at once, without the guest's help. Data that the guest has flushed to its disks is kept.
#[utoipa::path(post, path = "/v1/shutdown", operation_id = "shut_down_machine", responses((status = 204), (status = 409, body = ProblemDetails)))]
pub(super) async fn shutdown(State(events): State<Events>) -> Result<StatusCode, Refusal> {
    order(&events, Command::Shutdown).await
}

/// Returns boot memory, plugged memory and requested memory.
#[utoipa::path(get, path = "/v1/memory", operation_id = "get_memory", responses((status = 200, body = MemoryInfo)))]
pub(super) async fn memory(State(events): State<Events>) -> Result<Json<MemoryInfo>, Refusal> {
    ask(&events, Command::Memory).await
}

/// Asks the guest to plug or to unplug memory. The guest does so when it can. It never plugs more than was requested.
#[utoipa::path(put, path = "/v1/memory", operation_id = "put_memory", request_body = MemoryTarget,
    responses((status = 200, body = MemoryInfo), (status = 400, body = ProblemDetails), (status = 409, body = ProblemDetails)))]
pub(super) async fn set_memory(
    State(events): State<Events>,
    Body(target): Body<MemoryTarget>,
) -> Result<Json<MemoryInfo>, Refusal> {
    ask(&events, |reply| Command::SetMemory(target, reply)).await
}

/// Returns the counters since the start.
#[utoipa::path(get, path = "/v1/metrics", operation_id = "get_metrics", responses((status = 200, body = Metrics)))]
pub(super) async fn metrics(State(events): State<Events>) -> Result<Json<Metrics>, Refusal> {
    ask(&events, Command::Metrics).await
}

/// Sends a command; its response has a body.
async fn ask<T>(events: &Events, command: impl FnOnce(Reply<T>) -> Command) -> Result<Json<T>, Refusal> {
    send(events, command).await.map(Json)
}

/// Sends a command; its response has no body.
async fn order(events: &Events, command: impl FnOnce(Reply<()>) -> Command) -> Result<StatusCode, Refusal> {
    send(events, command).await.map(|()| StatusCode::NO_CONTENT)
}

async fn send<T>(events: &Events, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Refusal> {
    let (reply, answer) = oneshot::channel();
    events.send(Event::Command(command(reply)));
    match answer.await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Refusal::new(Code::Unavailable, "the machine has ended")),
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let code = match refused {
            Refused::State(..) => Code::Conflict,
            Refused::Invalid(_) => Code::Invalid,
            Refused::Failed(_) => Code::Busy,
        };
        Problem::new(code, refused.to_string())
    }
}
