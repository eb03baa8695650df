//! The guest API over any listener: [`vsock`] in a guest, a Unix socket in tests.

mod environments;
mod machine;
mod memory;
#[cfg(test)]
mod openapi;
pub(crate) mod vsock;

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post, put};
use axum::serve::Listener;
use garret_api::Code;
use garret_api::agent::WORKSPACES_DIR;
use garret_http::{Refusal, no_such_method};
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

    pub fn memory(&self) -> &Memory {
        &self.memory
    }
}

/// Serves requests; does not end by itself.
pub async fn serve<L: Listener<Addr: std::fmt::Debug>>(listener: L, agent: Arc<Agent>) -> std::io::Result<()> {
    let router = Router::new()
        .route("/v1/agent", get(machine::info))
        .route("/v1/machine", put(machine::set_up))
        .route("/v1/memory", get(memory::follow).put(memory::squeeze))
        .route("/v1/exec", get(machine::exec))
        .route("/v1/power-off", post(machine::power_off))
        .route("/v1/workspaces/{share}/release", post(machine::release))
        .route("/v1/environments", get(environments::list))
        .route("/v1/environments/{id}", put(environments::up).get(environments::get).delete(environments::delete))
        .route("/v1/environments/{id}/exec", get(environments::exec))
        .route("/v1/environments/{id}/log", get(environments::log))
        .route("/v1/environments/{id}/stop", post(environments::stop))
        .fallback(async || Refusal::new(Code::NotFound, "there is no such call; the guest API begins with /v1"))
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(agent);
    axum::serve(listener, router).await
}
