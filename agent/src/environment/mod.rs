//! Environments: devcontainers and their records.
//!
//! | file | what |
//! |---|---|
//! | `run`, `up` | one run of `up`, and its steps in order |
//! | `read` | its devcontainer.json, read |
//! | `container`, `source` | its container: found or created; its image: pulled, built, adapted |
//! | `hooks` | its lifecycle commands |
//! | `remote` | processes in it: user, environment |
//! | `plan`, `mounts`, `names`, `image`, `renumber` | pure: from configuration and facts to the engine's arguments |
//! | `podman`, `engine_call`, `inspect` | the engine's command line, one call of it, what it prints |
//! | `engine_socket`, `runtime` | the engine's API socket, the OCI runtime's records |
//! | `git` | git and the workspace's owner |
//! | `journal` | the progress lines of one run of `up` |
//! | `record`, `entry` | the record of an environment |

mod container;
mod engine_call;
mod engine_socket;
mod entry;
mod git;
mod hooks;
mod image;
mod inspect;
mod journal;
mod mounts;
mod names;
mod plan;
mod podman;
mod read;
mod record;
mod remote;
mod renumber;
mod run;
mod runtime;
mod source;
mod up;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use futures_util::future::join_all;
use garret_api::agent::{EnvironmentPhase, EnvironmentSpec, EnvironmentStatus, ExecRequest, LOG_MAX, Progress};
use garret_api::{Code, Problem};
use tokio::sync::{mpsc, watch};
use tracing::{Instrument, Span};

use self::entry::{Entry, RunHandle};
use self::journal::StepFailed;
use self::podman::{Podman, keep_end};
use self::record::{Record, Store};
use self::run::{Leftovers, Run};
use crate::exec::ProcessSpec;
use crate::setup::HostFacts;

/// The longest id, in bytes: containers and images are named after it.
const ID_MAX: usize = 100;
/// How long a container may take to stop before it is killed, in seconds.
const STOP_SECONDS: &str = "10";

/// The folders of the environments.
#[derive(Clone, Debug)]
pub struct Dirs {
    /// Where workspaces are mounted, one folder per share.
    pub workspaces: PathBuf,
    /// The records of environments; they survive a reboot.
    pub state: PathBuf,
    /// Files that belong to this boot only.
    pub run: PathBuf,
}

#[derive(Debug)]
pub struct Environments {
    dirs: Dirs,
    facts: watch::Receiver<Arc<HostFacts>>,
    store: Store,
    engine: PathBuf,
    entries: Mutex<BTreeMap<String, Arc<Entry>>>,
}

impl Environments {
    /// Loads the records in `dirs.state`. `facts` changes when the host configures the machine.
    pub fn new(dirs: Dirs, facts: watch::Receiver<Arc<HostFacts>>) -> Arc<Self> {
        let store = Store::new(dirs.state.join("environments"));
        let entries = store.load().into_iter().map(|record| (record.id.clone(), Entry::new(store.clone(), record)));
        let entries = Mutex::new(entries.collect());
        Arc::new(Self { dirs, facts, store, engine: "podman".into(), entries })
    }

    /// Starts `id`. A second call with the same generation joins a run in progress and receives all its lines from the
    /// first. A call with a newer generation replaces the run. The work continues when the receiver is dropped.
    pub async fn up(self: &Arc<Self>, id: &str, spec: EnvironmentSpec) -> Result<mpsc::Receiver<Progress>, Problem> {
        check_id(id)?;
        let (entry, (handle, new)) = self.begin(id, &spec)?;
        let lines = handle.journal.follow();
        if new {
            let run = Run {
                dirs: self.dirs.clone(),
                facts: self.facts.borrow().clone(),
                podman: self.podman(),
                entry,
                journal: handle.journal.clone(),
                spec,
                leftovers: Leftovers::default(),
            };
            let span = tracing::error_span!("environment", id, generation = run.spec.generation);
            tokio::spawn(bring_up(self.clone(), run, handle).instrument(span));
        }
        Ok(lines)
    }

    /// The status of all environments, sorted by id.
    pub async fn list(&self) -> Vec<EnvironmentStatus> {
        self.all().iter().map(|entry| status(entry)).collect()
    }

    /// The status of one environment; `not-found` if there is none.
    pub async fn get(&self, id: &str) -> Result<EnvironmentStatus, Problem> {
        Ok(status(&*self.entry(id)?))
    }

    /// Stops the environment's containers; nothing is removed.
    pub async fn stop(self: &Arc<Self>, id: &str) -> Result<(), Problem> {
        self.stop_entry(self.entry(id)?).await
    }

    /// Removes the environment's containers, its volumes and its record. Removing an unknown environment succeeds. A
    /// volume that another environment uses stays.
    pub async fn delete(self: &Arc<Self>, id: &str) -> Result<(), Problem> {
        check_id(id)?;
        // An environment without a record may still have left containers or volumes.
        let known = self.lock().get(id).cloned();
        let is_known = known.is_some();
        let entry = known.unwrap_or_else(|| Entry::new(self.store.clone(), Record::new(id, "")));
        self.lock().insert(id.to_owned(), entry.clone());
        let (all, span) = (self.clone(), span_of(&entry));
        let work = async move {
            let deleted = all.delete_entry(&entry).await;
            if deleted.is_ok() || !is_known {
                all.forget(&entry);
            }
            deleted
        };
        to_the_end(work.instrument(span)).await
    }

    async fn delete_entry(&self, entry: &Arc<Entry>) -> Result<(), Problem> {
        entry.cancel();
        let _guard = entry.gate.lock().await;
        // Another removal may have come first.
        if entry.is_removed() {
            return Ok(());
        }
        self.remove_parts(entry).await?;
        entry.delete_record().await
    }

    /// Forgets an entry, unless a run of `up` waits for its removal or there is another entry of this id.
    fn forget(&self, entry: &Arc<Entry>) {
        let mut entries = self.lock();
        if !entry.runs() && entries.get(&entry.id).is_some_and(|known| Arc::ptr_eq(known, entry)) {
            entries.remove(&entry.id);
        }
    }

    /// The last [`LOG_MAX`] bytes of the output of the environment's container.
    pub async fn log(&self, id: &str) -> Result<Vec<u8>, Problem> {
        let entry = self.entry(id)?;
        let Some(container) = entry.container_id() else { return Ok(Vec::new()) };
        let max = usize::try_from(LOG_MAX).unwrap_or(usize::MAX);
        let mut log = Vec::new();
        self.podman().stream(["logs", &container], |bytes| keep_end(&mut log, bytes, max)).await?;
        Ok(log.split_off(log.len().saturating_sub(max)))
    }

    /// The process that carries out `request` in the devcontainer; the caller runs it.
    pub async fn exec(&self, id: &str, request: ExecRequest) -> Result<ProcessSpec, Problem> {
        let entry = self.entry(id)?;
        let (phase, container) = entry.with(|record| (record.phase, record.container.clone()));
        let conflict = |what: &str| Problem::new(Code::Conflict, format!("environment {id} {what}"));
        let container = container.ok_or_else(|| conflict("has no container yet; bring it up first"))?;
        if phase == EnvironmentPhase::Starting && !container.usable {
            return Err(conflict("is still starting; wait for it"));
        }
        let running = runtime::running(&container.id).ok_or_else(|| conflict("is stopped; bring it up first"))?;
        remote::process(&container, &remote::users(running.pid).await?, request)
    }

    /// Stops the containers of every environment whose workspace is `share`, because that folder is about to be
    /// removed.
    pub async fn release(self: &Arc<Self>, share: &str) -> Result<(), Problem> {
        let of_share = self.all().into_iter().filter(|entry| entry.with(|record| record.share == share));
        join_all(of_share.map(|entry| self.stop_entry(entry))).await.into_iter().collect()
    }

    /// Stops every container of the machine, in parallel; called before power-off under a deadline.
    pub async fn stop_all(&self) {
        for entry in self.all() {
            entry.cancel();
        }
        // A run in progress may be creating a container.
        let run_in_progress = self.all().iter().any(|entry| entry.gate.try_lock().is_err());
        // podman's first call after a boot is slow, because it refreshes the state of all containers.
        if !run_in_progress && !runtime::any_container_may_run() {
            return;
        }
        if let Err(failure) = self.podman().output(["stop", "--all", "--time", STOP_SECONDS]).await {
            tracing::warn!("not all containers could be stopped: {failure}");
        }
    }

    /// Removes the container, volumes and images of an environment. Parts that another environment uses stay.
    async fn remove_parts(&self, entry: &Entry) -> Result<(), Problem> {
        let podman = self.podman();
        podman.remove_containers_of(&entry.id).await?;
        // A container has no label if podman was killed while it created the container, or if podman's database lost
        // it.
        podman.remove_containers([names::container_name(&entry.id)]).await?;
        let volumes = entry.with(|record| record.volumes.clone());
        if !volumes.is_empty() {
            let _ = podman.output(["volume".to_owned(), "rm".to_owned()].into_iter().chain(volumes)).await;
        }
        let images = [names::renumbered_image(&entry.id), names::built_image(&entry.id)];
        let rmi = ["image", "rm", "--ignore"].map(str::to_owned);
        let _ = podman.output(rmi.into_iter().chain(images)).await;
        podman.prune_images(&entry.id).await;
        Ok(())
    }

    async fn stop_entry(self: &Arc<Self>, entry: Arc<Entry>) -> Result<(), Problem> {
        let (all, span) = (self.clone(), span_of(&entry));
        to_the_end(async move { all.stop_container_of(&entry).await }.instrument(span)).await
    }

    async fn stop_container_of(&self, entry: &Arc<Entry>) -> Result<(), Problem> {
        entry.cancel();
        let _guard = entry.gate.lock().await;
        if let Some(container) = entry.container_id() {
            self.podman().output(["stop", "--ignore", "--time", STOP_SECONDS, &container]).await?;
        }
        let recorded = entry.update(|record| {
            record.phase = EnvironmentPhase::Stopped;
            record.problem = None;
        });
        if let Err(problem) = recorded.await {
            // The container has stopped, and the next agent will see that.
            tracing::warn!("{problem}");
        }
        Ok(())
    }

    fn podman(&self) -> Podman {
        Podman::new(&self.engine, &self.facts.borrow().engine_env)
    }

    fn entry(&self, id: &str) -> Result<Arc<Entry>, Problem> {
        let missing = || Problem::new(Code::NotFound, format!("there is no environment {id:?}"));
        self.lock().get(id).cloned().ok_or_else(missing)
    }

    /// Begins or joins a run, in one turn: a removal that ends meanwhile would forget the entry.
    fn begin(&self, id: &str, spec: &EnvironmentSpec) -> Result<(Arc<Entry>, (RunHandle, bool)), Problem> {
        let mut entries = self.lock();
        // A removal whose caller gave up may have removed the record and left its entry.
        if let Some(removed) = entries.get(id).filter(|known| known.is_removed() && !known.runs()) {
            removed.cancel();
            entries.remove(id);
        }
        let new = || Entry::new(self.store.clone(), Record::new(id, &spec.share));
        let entry = entries.entry(id.to_owned()).or_insert_with(new).clone();
        let run = entry.begin(spec.generation)?;
        Ok((entry, run))
    }

    fn all(&self) -> Vec<Arc<Entry>> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes the files left by an agent that was killed.
pub(crate) fn clean_up() {
    engine_call::clean_up();
}

/// Runs all of `up`, including its last line.
async fn bring_up(all: Arc<Environments>, mut run: Run, handle: RunHandle) {
    let entry = run.entry.clone();
    let result = match turn(&entry, &handle).await {
        // Nothing was touched.
        Err(failed) => Err(failed),
        Ok(guard) => {
            let begun = SystemTime::now();
            let result = tokio::select! {
                biased;
                reason = handle.cancelled() => Err(cancelled("up", reason)),
                result = up::execute(&mut run) => result,
            };
            run.clean_up(begun).await;
            let result = run.record_result(result).await;
            drop(guard);
            result
        }
    };
    // Before the last line: a client that reads it and asks again must get a new run.
    entry.end(&handle);
    if entry.is_removed() {
        all.forget(&entry);
    }
    handle.journal.write(match result {
        Ok(()) => Progress::Ready { environment: status(&entry) },
        Err(StepFailed { step, problem }) => Progress::Failed { step, problem },
    });
}

/// Waits until the engine's work for earlier requests has ended. It may take minutes, so it is a step.
async fn turn<'a>(entry: &'a Entry, handle: &RunHandle) -> Result<tokio::sync::MutexGuard<'a, ()>, StepFailed> {
    const STEP: &str = "wait for an earlier request";
    if let Ok(guard) = entry.gate.try_lock() {
        return Ok(guard);
    }
    let wait = async |_: &journal::Output| {
        tokio::select! {
            biased;
            reason = handle.cancelled() => Err(cancelled(STEP, reason).problem),
            guard = entry.gate.lock() => Ok(guard),
        }
    };
    handle.journal.step(STEP, wait).await
}

fn cancelled(step: &str, reason: &str) -> StepFailed {
    StepFailed { step: step.into(), problem: Problem::new(Code::Conflict, reason) }
}

/// Names the environment in the log. Of the level that is always logged.
fn span_of(entry: &Entry) -> Span {
    tracing::error_span!("environment", id = entry.id)
}

fn status(entry: &Entry) -> EnvironmentStatus {
    entry.with(|record| {
        let running = record.container.as_ref().is_some_and(|container| runtime::is_running(&container.id));
        record.status(running)
    })
}

/// Ids name files, containers and images.
fn check_id(id: &str) -> Result<(), Problem> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let starts = id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if starts && id.len() <= ID_MAX && id.bytes().all(fine) {
        return Ok(());
    }
    let message = format!("{id:?} is not an environment's id: 1 to {ID_MAX} letters, digits, - and _");
    Err(Problem::new(Code::Invalid, message))
}

/// Runs the work to its end, also if the caller leaves: it holds an environment's gate as long as the engine works on it.
async fn to_the_end(work: impl Future<Output = Result<(), Problem>> + Send + 'static) -> Result<(), Problem> {
    let panicked = |error| Err(Problem::new(Code::Internal, format!("the agent's own code failed: {error}")));
    tokio::spawn(work).await.unwrap_or_else(panicked)
}

#[cfg(test)]
mod tests;
