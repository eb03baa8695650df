//! The record of an environment, on the data disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use garret_api::Problem;
use garret_api::agent::{EnvironmentPhase, EnvironmentStatus};
use garret_devcontainer::{Stage, UserEnvProbe};
use serde::{Deserialize, Serialize};

/// What the agent must know of an environment after a restart.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Its id.
    pub id: String,
    /// The folder below the share's root that holds the workspace.
    pub share: String,
    /// The newest run that was begun.
    #[serde(default)]
    pub generation: u64,
    /// What it was doing last.
    pub phase: EnvironmentPhase,
    /// Why it failed.
    pub problem: Option<Problem>,
    /// The devcontainer.json the container was made from.
    pub config: Option<String>,
    /// Its container.
    pub container: Option<ContainerRecord>,
    /// Volumes its containers were given by name.
    #[serde(default)]
    pub volumes: BTreeSet<String>,
}

/// The record of a container; gone with it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its id, 64 hexadecimal digits.
    pub id: String,
    /// The run that made it; 0: a run that was not counted.
    #[serde(default)]
    pub generation: u64,
    /// What its image says of itself.
    pub image: ImageRecord,
    /// It has the engine's socket.
    pub engine_socket: bool,
    /// Who runs commands.
    pub remote_user: String,
    /// Where.
    pub workspace_folder: String,
    /// Its own variables.
    pub env: BTreeMap<String, String>,
    /// `remoteEnv`; `None` takes a variable away.
    pub remote_env: BTreeMap<String, Option<String>>,
    /// What the remote user's shell said last.
    pub probed: Option<Probed>,
    /// The lifecycle commands that have run to their end: once per container, `postStartCommand` once per start, whose
    /// time is recorded.
    pub done: BTreeMap<String, String>,
    /// The stage after which it may be used has been passed since it was started last.
    #[serde(skip)]
    pub usable: bool,
}

/// The record of a container's image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Its user; empty: root.
    pub user: String,
    /// Its metadata label.
    pub metadata: Option<String>,
}

/// What the remote user's shell says of its environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    /// How it was asked.
    pub kind: UserEnvProbe,
    /// When the container had been started.
    pub started_at: String,
    /// The variables.
    pub env: BTreeMap<String, String>,
}

/// The record of a stage that runs once per container.
const ONCE: &str = "once";

impl ContainerRecord {
    /// Whether a stage has nothing to do in the container that was started at `started_at`.
    pub fn is_done(&self, stage: Stage, started_at: &str) -> bool {
        mark(stage, started_at).is_some_and(|mark| self.done.get(stage.name()).map(String::as_str) == Some(mark))
    }

    /// Notes that a stage has run to its end.
    pub fn set_done(&mut self, stage: Stage, started_at: &str) {
        if let Some(mark) = mark(stage, started_at) {
            self.done.insert(stage.name().to_owned(), mark.to_owned());
        }
    }
}

/// `postAttachCommand` has none: it runs each time.
fn mark(stage: Stage, started_at: &str) -> Option<&str> {
    match stage {
        Stage::OnCreateCommand | Stage::UpdateContentCommand | Stage::PostCreateCommand => Some(ONCE),
        Stage::PostStartCommand => Some(started_at),
        Stage::InitializeCommand | Stage::PostAttachCommand => None,
    }
}

impl Record {
    /// A new environment.
    pub fn new(id: &str, share: &str) -> Self {
        Self {
            id: id.to_owned(),
            share: share.to_owned(),
            generation: 0,
            phase: EnvironmentPhase::Starting,
            problem: None,
            config: None,
            container: None,
            volumes: BTreeSet::new(),
        }
    }

    /// As the API shows it; `running` is whether its container runs.
    pub fn status(&self, running: bool) -> EnvironmentStatus {
        let container = self.container.as_ref();
        EnvironmentStatus {
            id: self.id.clone(),
            phase: match self.phase {
                EnvironmentPhase::Ready if !running => EnvironmentPhase::Stopped,
                phase => phase,
            },
            container_id: container.map(|container| container.id.clone()),
            remote_user: container.map(|container| container.remote_user.clone()),
            workspace_folder: container.map(|container| container.workspace_folder.clone()),
            problem: self.problem.clone(),
        }
    }
}

/// The folder of records, one file each.
#[derive(Clone, Debug)]
pub struct Store(PathBuf);

impl Store {
    /// Records in `folder`.
    pub fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// All that can be read; what cannot is left alone and named in the log.
    pub fn load(&self) -> Vec<Record> {
        // An earlier agent made it readable to all.
        std::fs::set_permissions(&self.0, Permissions::from_mode(0o700)).ok();
        let entries = std::fs::read_dir(&self.0).into_iter().flatten().flatten().map(|entry| entry.path());
        let files = entries.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        files
            .filter_map(|path| read(&path).map_err(|error| tracing::warn!("{path:?} is left alone: {error}")).ok())
            .collect()
    }

    /// Writes one record; afterwards it is on the disk, and a crash in between leaves the earlier one. Records hold the
    /// developer's variables: only root in the guest may read them.
    pub fn save(&self, record: &Record) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let temporary = self.0.join(format!("{}.new", record.id));
        // Not the mode of a file that an earlier agent has left.
        remove_file(&temporary)?;
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(record)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, self.path(&record.id))?;
        File::open(&self.0)?.sync_all()
    }

    /// Writes everything else of the records' disk: containers, and what commands made in them, of which podman syncs
    /// nothing. Before a record speaks of them.
    pub fn sync_disk(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        Ok(rustix::fs::syncfs(File::open(&self.0)?)?)
    }

    /// Removes one record, if there is one.
    pub fn remove(&self, id: &str) -> io::Result<()> {
        remove_file(&self.path(id))
    }

    fn path(&self, id: &str) -> PathBuf {
        self.0.join(format!("{id}.json"))
    }
}

fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A way up that the agent did not live to end is a failed one.
fn read(path: &Path) -> io::Result<Record> {
    let mut record: Record = serde_json::from_slice(&std::fs::read(path)?)?;
    if record.phase == EnvironmentPhase::Starting {
        record.phase = EnvironmentPhase::Failed;
        record.problem = Some(Problem::new("unavailable", "its start was interrupted; bring the environment up again"));
    }
    // A container that was ready and still runs is still usable.
    if let (EnvironmentPhase::Ready, Some(container)) = (record.phase, &mut record.container) {
        container.usable = true;
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(phase: EnvironmentPhase) -> Record {
        let mut container = ContainerRecord { id: "ab".into(), remote_user: "me".into(), ..Default::default() };
        container.set_done(Stage::OnCreateCommand, "t1");
        container.set_done(Stage::PostStartCommand, "t1");
        container.set_done(Stage::PostAttachCommand, "t1");
        Record {
            id: "p-1".into(),
            share: "p".into(),
            generation: 1,
            phase,
            problem: None,
            config: None,
            container: Some(container),
            volumes: BTreeSet::new(),
        }
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("environments"));
        assert!(store.load().is_empty());
        store.save(&record(EnvironmentPhase::Starting)).unwrap();
        store.save(&record(EnvironmentPhase::Ready)).unwrap();
        std::fs::write(folder.path().join("environments/broken.json"), "{").unwrap();
        let loaded = store.load();
        assert_eq!(loaded.len(), 1);
        let status = loaded[0].status(true);
        assert_eq!((status.phase, status.remote_user.as_deref()), (EnvironmentPhase::Ready, Some("me")));
        assert_eq!(loaded[0].status(false).phase, EnvironmentPhase::Stopped);
        store.remove("p-1").unwrap();
        store.remove("p-1").unwrap();
        assert!(store.load().is_empty());
    }

    #[test]
    fn only_root_can_read_records() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("environments"));
        store.save(&record(EnvironmentPhase::Ready)).unwrap();
        let mode = |path: &str| std::fs::metadata(folder.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("environments"), mode("environments/p-1.json")), (0o700, 0o600));
        // What an earlier agent left.
        std::fs::set_permissions(folder.path().join("environments"), Permissions::from_mode(0o755)).unwrap();
        std::fs::write(folder.path().join("environments/p-1.new"), "").unwrap();
        store.load();
        store.save(&record(EnvironmentPhase::Ready)).unwrap();
        assert_eq!((mode("environments"), mode("environments/p-1.json")), (0o700, 0o600));
    }

    #[test]
    fn a_record_of_an_earlier_agent_is_read() {
        let old =
            r#"{"id": "p-1", "share": "p", "phase": "ready", "problem": null, "config": null, "container": null}"#;
        let record: Record = serde_json::from_str(old).unwrap();
        assert_eq!((record.generation, record.id.as_str()), (0, "p-1"));
    }

    #[test]
    fn an_interrupted_way_up_has_failed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().into());
        store.save(&record(EnvironmentPhase::Starting)).unwrap();
        let status = store.load()[0].status(true);
        assert_eq!(status.phase, EnvironmentPhase::Failed);
        assert!(status.problem.unwrap().message.contains("again"));
    }

    #[test]
    fn stages_run_once_per_container_start_or_attach() {
        let container = record(EnvironmentPhase::Ready).container.unwrap();
        for (stage, first_start, second_start) in [
            (Stage::OnCreateCommand, true, true),
            (Stage::UpdateContentCommand, false, false),
            (Stage::PostStartCommand, true, false),
            (Stage::PostAttachCommand, false, false),
        ] {
            assert_eq!(container.is_done(stage, "t1"), first_start, "{stage:?}");
            assert_eq!(container.is_done(stage, "t2"), second_start, "{stage:?}");
        }
    }
}
