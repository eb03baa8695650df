//! `/v1/agent`, `/v1/machine`, `/v1/exec`, `/v1/workspaces` and `/v1/power-off`

use std::sync::Arc;

use axum::Json;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use garret_api::agent::{API, AgentInfo, ExecRequest, GENERATIONS, MachineSetup};
use garret_api::stream::{FRAME_MAX, REQUEST_MAX, STDIN_CREDITS, StreamKind};
use garret_api::{Code, Problem, ProblemDetails};
use garret_http::{Body, Refusal};
use rustix::process::Signal;

use super::Agent;
use crate::exec::{self, ProcessSpec};
use crate::users::Users;
use crate::workspaces;

#[utoipa::path(
    get,
    path = "/v1/agent",
    operation_id = "get_agent",
    responses((status = 200, body = AgentInfo))
)]
pub(super) async fn info(State(agent): State<Arc<Agent>>) -> Result<Json<AgentInfo>, Refusal> {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(internal)?;
    Ok(Json(AgentInfo {
        version: env!("CARGO_PKG_VERSION").into(),
        boot_id: boot_id.trim().into(),
        pid: std::process::id(),
        set_up: agent.setup.done().await,
        api: API,
        capabilities: vec![GENERATIONS.into()],
        streams: vec![StreamKind::Exec],
    }))
}

#[utoipa::path(
    put,
    path = "/v1/machine",
    operation_id = "set_up_machine",
    request_body = MachineSetup,
    responses((status = 204, description = "The settings apply."), (status = 400, body = ProblemDetails))
)]
pub(super) async fn set_up(
    State(agent): State<Arc<Agent>>,
    Body(setup): Body<MachineSetup>,
) -> Result<StatusCode, Refusal> {
    agent.setup.apply(setup).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(
    get,
    path = "/v1/exec",
    operation_id = "exec_in_machine",
    responses((status = 101, description = "A WebSocket to a process in the guest itself, as root."))
)]
pub(super) async fn exec(State(agent): State<Arc<Agent>>, upgrade: WebSocketUpgrade) -> Response {
    session(agent, upgrade, async |agent: Arc<Agent>, request| {
        let users = Users::of_guest().await?;
        let facts = agent.setup.facts().borrow().clone();
        exec::guest_process(&users, request, &facts.engine_env)
    })
}

/// Upgrades to a WebSocket and runs the process that `prepare` returns for the request. Above the limit of sessions the
/// client receives an error.
pub(super) fn session<P, F>(agent: Arc<Agent>, upgrade: WebSocketUpgrade, prepare: P) -> Response
where
    P: FnOnce(Arc<Agent>, ExecRequest) -> F + Send + 'static,
    F: Future<Output = Result<ProcessSpec, Problem>> + Send + 'static,
{
    let upgrade = upgrade.protocols([STDIN_CREDITS]);
    let credits = upgrade.selected_protocol().is_some();
    let upgrade = upgrade.max_message_size(REQUEST_MAX).max_frame_size(REQUEST_MAX).write_buffer_size(FRAME_MAX);
    upgrade.on_upgrade(async move |socket| {
        let permit = agent.sessions.clone().try_acquire_owned();
        let full = permit.is_err();
        exec::serve(socket, credits, async move |request| match full {
            false => prepare(agent, request).await,
            true => Err(Problem::new(Code::Unavailable, "too many commands run in this machine at once; end some")),
        })
        .await;
        drop(permit);
    })
}

#[utoipa::path(
    post,
    path = "/v1/workspaces/{share}/release",
    operation_id = "release_workspace",
    params(("share" = String, Path, description = "The folder's name in the share.")),
    responses((status = 204, description = "Nothing in the guest uses the folder any more."), (status = 400, body = ProblemDetails), (status = 503, body = ProblemDetails))
)]
pub(super) async fn release(State(agent): State<Arc<Agent>>, Path(share): Path<String>) -> Result<StatusCode, Refusal> {
    workspaces::check_name(&share)?;
    agent.environments.release(&share).await?;
    workspaces::release(agent.dirs.workspaces.join(share)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Powers the machine off. Init asks this agent to stop the containers and to exit, then it ends the machine.
#[utoipa::path(
    post,
    path = "/v1/power-off",
    operation_id = "power_off_machine",
    responses((status = 202, description = "The containers stop, then the machine."), (status = 503, body = ProblemDetails))
)]
pub(super) async fn power_off(State(agent): State<Arc<Agent>>) -> Result<StatusCode, Refusal> {
    let init = agent.init.ok_or_else(|| {
        Problem::new(Code::Unavailable, "this agent was not started by garret's init and cannot power off")
    })?;
    rustix::process::kill_process(init, Signal::TERM).map_err(|error| internal(error.into()))?;
    Ok(StatusCode::ACCEPTED)
}

fn internal(error: std::io::Error) -> Refusal {
    Problem::new(Code::Internal, error.to_string()).into()
}
