//! One run of `up`: what it works with, and what more than one of its steps does.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use garret_api::agent::{EnvironmentPhase, EnvironmentSpec};
use garret_api::{Code, Problem};

use super::Dirs;
use super::entry::Entry;
use super::journal::{Journal, Output, StepFailed};
use super::podman::{Failure, Podman};
use super::record::{ContainerRecord, Record};
use crate::setup::HostFacts;

/// The step in which a failure to write the record is reported.
pub(super) const SAVE_STEP: &str = "save state";

pub(super) struct Run {
    pub dirs: Dirs,
    pub facts: Arc<HostFacts>,
    pub podman: Podman,
    pub entry: Arc<Entry>,
    pub journal: Arc<Journal>,
    pub spec: EnvironmentSpec,
    /// What must be removed if the run is cancelled.
    pub leftovers: Leftovers,
}

/// The engine calls that have started and have not ended successfully.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    building: AtomicBool,
    pub creating: AtomicBool,
}

impl Run {
    pub(super) fn id(&self) -> &str {
        &self.entry.id
    }

    pub(super) fn workspace(&self) -> PathBuf {
        self.dirs.workspaces.join(&self.spec.share)
    }

    pub(super) fn host_path(&self) -> &str {
        self.spec.host_path.trim_end_matches('/')
    }

    /// Whether this run has created the container. This includes the part of the run that an earlier agent carried out.
    pub(super) fn is_built(&self) -> bool {
        let made_by = self.entry.with(|record| record.container.as_ref().map_or(0, |container| container.generation));
        made_by != 0 && made_by == self.spec.generation
    }

    /// Changes the record; a failure is reported as a step of the run.
    pub(super) async fn record<T>(&self, change: impl FnOnce(&mut Record) -> T) -> Result<(), StepFailed> {
        let recorded = self.entry.update(change).await;
        recorded.map_err(|problem| StepFailed { step: SAVE_STEP.into(), problem })
    }

    pub(super) fn container_record(&self) -> ContainerRecord {
        self.entry.with(|record| record.container.clone()).unwrap_or_default()
    }

    /// A file that only this user can read. It is removed on drop, after the engine has read it.
    pub(super) fn secret_file(&self, text: &str) -> Result<tempfile::NamedTempFile, Problem> {
        let written = tempfile::NamedTempFile::new_in(&self.dirs.run)
            .and_then(|mut file| file.write_all(text.as_bytes()).map(|()| file));
        written
            .map_err(|error| Problem::new(Code::Internal, format!("cannot write the container's variables: {error}")))
    }

    /// `podman build …`. Unless it succeeds, its remains are removed later.
    pub(super) async fn build(
        &self,
        args: Vec<String>,
        env: BTreeMap<String, String>,
        output: &Output,
    ) -> Result<(), Failure> {
        self.leftovers.building.store(true, Ordering::Relaxed);
        self.podman.with_env(env).stream(args, |bytes| output.bytes(bytes)).await?;
        self.leftovers.building.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Removes the remains of a failed call that creates a container.
    pub(super) async fn remove_unrecorded(&self) {
        let known = self.entry.container_id();
        let mut found = self.podman.containers(self.id()).await.unwrap_or_default();
        found.retain(|id| Some(id) != known.as_ref());
        let _ = self.podman.remove_containers(found).await;
    }

    /// Waits for the cancelled calls of the engine, and removes what they have left.
    pub(super) async fn clean_up(&self, begun: SystemTime) {
        self.podman.idle().await;
        if self.leftovers.creating.load(Ordering::Relaxed) {
            self.remove_unrecorded().await;
        }
        if self.leftovers.building.load(Ordering::Relaxed) {
            let since = begun.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            if let Err(failure) = self.podman.remove_build_containers(since).await {
                tracing::warn!("an unfinished build's containers could not be removed: {failure}");
            }
        }
    }

    /// Records the run's result. A result that cannot be recorded is a failure.
    pub(super) async fn record_result(&self, result: Result<(), StepFailed>) -> Result<(), StepFailed> {
        let problem = result.as_ref().err().map(|failed| failed.problem.clone());
        let recorded = self.record(|record| set_end(record, problem)).await;
        if let (Ok(()), Err(failed)) = (&result, &recorded) {
            // In memory it is recorded even if this write to the disk fails as well.
            let problem = Some(failed.problem.clone());
            let _ = self.record(|record| set_end(record, problem)).await;
            return recorded;
        }
        result
    }
}

fn set_end(record: &mut Record, problem: Option<Problem>) {
    record.phase = if problem.is_some() { EnvironmentPhase::Failed } else { EnvironmentPhase::Ready };
    record.problem = problem;
}
