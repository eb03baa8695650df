//! The guest API over any listener: [`vsock`] in a guest, a Unix socket in tests.

mod environments;
mod machine;
mod memory;
pub(crate) mod vsock;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body as ResponseBody, Bytes};
use axum::extract::DefaultBodyLimit;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::serve::Listener;
use futures_util::{Stream, StreamExt};
use garret_api::Problem;
use garret_api::agent::WORKSPACES_DIR;
use rustix::process::Pid;
use tokio::sync::Semaphore;

use crate::environment::{Dirs, Environments};
use crate::memory::Memory;
use crate::setup::Setup;

/// The most commands and terminals at the same time.
const SESSIONS_MAX: usize = 256;

/// The largest body, in bytes; certificates are the bulk of it.
const BODY_MAX: usize = 8 << 20;

/// The state that all handlers share.
pub struct Agent {
    setup: Setup,
    environments: Arc<Environments>,
    memory: Memory,
    /// The process id of PID 1, if it is garret's init and can be asked to power off.
    init: Option<Pid>,
    sessions: Arc<Semaphore>,
    dirs: Dirs,
}

impl Agent {
    /// `state` survives a reboot, `run` survives a restart of the agent. Must be called within the runtime.
    pub fn new(state: PathBuf, run: PathBuf, init: Option<Pid>) -> Arc<Self> {
        let setup = Setup::load(&run);
        let dirs = Dirs { workspaces: WORKSPACES_DIR.into(), state, run };
        let environments = Environments::new(dirs.clone(), setup.facts());
        let sessions = Arc::new(Semaphore::new(SESSIONS_MAX));
        Arc::new(Self { setup, environments, memory: Memory::new(), init, sessions, dirs })
    }

    pub fn environments(&self) -> &Arc<Environments> {
        &self.environments
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }
}

/// Serves requests; does not end by itself.
pub async fn serve<L: Listener<Addr: std::fmt::Debug>>(listener: L, agent: Arc<Agent>) -> std::io::Result<()> {
    let router = Router::new()
        .route("/v1/agent", get(machine::info))
        .route("/v1/machine", put(machine::set_up))
        .route("/v1/statistics", get(machine::statistics))
        .route("/v1/memory", get(memory::follow).put(memory::squeeze))
        .route("/v1/exec", get(machine::exec))
        .route("/v1/power-off", post(machine::power_off))
        .route("/v1/workspaces/{share}/release", post(machine::release))
        .route("/v1/environments", get(environments::list))
        .route("/v1/environments/{id}", put(environments::up).get(environments::get).delete(environments::delete))
        .route("/v1/environments/{id}/exec", get(environments::exec))
        .route("/v1/environments/{id}/log", get(environments::log))
        .route("/v1/environments/{id}/stop", post(environments::stop))
        .fallback(async || Refusal(Problem::new("not-found", "there is no such call; the guest API begins with /v1")))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(agent);
    axum::serve(listener, router).await
}

/// A response of newline-delimited JSON; each value is sent when it is available.
fn lines<T: serde::Serialize>(values: impl Stream<Item = T> + Send + 'static) -> Response {
    let lines = values.map(|value| {
        let mut line = serde_json::to_vec(&value).expect("what the API has is plain data");
        line.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(line))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], ResponseBody::from_stream(lines)).into_response()
}

/// A [`Problem`] as a response.
struct Refusal(Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self.0.code.as_str() {
            "invalid" => StatusCode::BAD_REQUEST,
            "forbidden" => StatusCode::FORBIDDEN,
            "not-found" => StatusCode::NOT_FOUND,
            "conflict" => StatusCode::CONFLICT,
            "unavailable" => StatusCode::SERVICE_UNAVAILABLE,
            "disk-full" => StatusCode::INSUFFICIENT_STORAGE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, axum::Json(self.0)).into_response()
    }
}

/// A JSON body; an invalid body becomes a [`Problem`].
struct Body<T>(T);

impl<T: serde::de::DeserializeOwned, S: Send + Sync> axum::extract::FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self, Refusal> {
        let invalid = |error: String| Problem::new("invalid", format!("the body is not valid: {error}"));
        let bytes =
            axum::body::Bytes::from_request(request, state).await.map_err(|error| invalid(error.to_string()))?;
        Ok(Self(serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?))
    }
}
