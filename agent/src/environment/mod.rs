//! Environments: devcontainers and what is known of them.

use std::path::PathBuf;
use std::sync::Arc;

use garret_api::Problem;
use garret_api::agent::{EnvironmentSpec, EnvironmentStatus, ExecRequest, Progress};
use tokio::sync::{mpsc, watch};

use crate::exec::ProcessSpec;
use crate::setup::HostFacts;

/// The folders environments live in.
#[derive(Clone, Debug)]
pub struct Dirs {
    /// Where workspaces are mounted, one folder per share.
    pub workspaces: PathBuf,
    /// What is noted of environments; survives a reboot.
    pub state: PathBuf,
    /// What belongs to this boot only.
    pub run: PathBuf,
}

/// All environments of this machine.
#[derive(Debug)]
pub struct Environments {
    _dirs: Dirs,
    _facts: watch::Receiver<Arc<HostFacts>>,
}

impl Environments {
    /// Takes up what `dirs.state` and podman tell of. `facts` changes when the host sets the machine up.
    pub fn new(dirs: Dirs, facts: watch::Receiver<Arc<HostFacts>>) -> Arc<Self> {
        Arc::new(Self { _dirs: dirs, _facts: facts })
    }

    /// Brings `id` up. A second call while one runs joins it and receives all its lines from the first.
    /// The work goes on when the receiver is dropped.
    pub async fn up(self: &Arc<Self>, id: &str, _spec: EnvironmentSpec) -> Result<mpsc::Receiver<Progress>, Problem> {
        Err(missing(id))
    }

    /// All of them, by id.
    pub async fn list(&self) -> Vec<EnvironmentStatus> {
        Vec::new()
    }

    /// One of them; `not-found` if there is none.
    pub async fn get(&self, id: &str) -> Result<EnvironmentStatus, Problem> {
        Err(missing(id))
    }

    /// Stops its containers; nothing is removed.
    pub async fn stop(&self, id: &str) -> Result<(), Problem> {
        Err(missing(id))
    }

    /// Removes its containers, volumes and what was noted of it. Removing what is not there succeeds.
    pub async fn delete(&self, id: &str) -> Result<(), Problem> {
        Err(missing(id))
    }

    /// The last [`garret_api::agent::LOG_MAX`] bytes of its container's output.
    pub async fn log(&self, id: &str) -> Result<Vec<u8>, Problem> {
        Err(missing(id))
    }

    /// What to run to carry out `request` in the devcontainer; the caller runs it.
    pub async fn exec(&self, id: &str, _request: ExecRequest) -> Result<ProcessSpec, Problem> {
        Err(missing(id))
    }

    /// Stops the containers of every environment whose workspace is `share`, for the folder is about to go away.
    pub async fn release(&self, _share: &str) -> Result<(), Problem> {
        Ok(())
    }

    /// Stops every container of the machine, in parallel; called before power-off under a deadline.
    pub async fn stop_all(&self) {}
}

fn missing(id: &str) -> Problem {
    Problem::new("not-found", format!("there is no environment {id:?}"))
}
