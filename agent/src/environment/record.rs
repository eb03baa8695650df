//! The record of an environment, on the data disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use garret_api::agent::{EnvironmentPhase, EnvironmentStatus};
use garret_api::{Code, Problem};
use garret_devcontainer::{Stage, UserEnvProbe};
use serde::{Deserialize, Serialize};

/// The state of an environment that the agent needs after a restart.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub id: String,
    /// The folder below the share's root that holds the workspace.
    pub share: String,
    /// The generation of the newest run that was started.
    #[serde(default)]
    pub generation: u64,
    /// The last phase.
    pub phase: EnvironmentPhase,
    /// The reason of the last failure.
    pub problem: Option<Problem>,
    /// The devcontainer.json the container was made from.
    pub config: Option<String>,
    pub container: Option<ContainerRecord>,
    /// Names of the volumes that its containers were given.
    #[serde(default)]
    pub volumes: BTreeSet<String>,
}

/// The record of a container; removed together with the container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct ContainerRecord {
    /// Its id, 64 hexadecimal digits.
    pub id: String,
    /// The generation of the run that created it; 0 if the run had no generation.
    #[serde(default)]
    pub generation: u64,
    /// Data from its image.
    pub image: ImageRecord,
    pub engine_socket: bool,
    /// The user that runs commands.
    pub remote_user: String,
    /// The folder in which commands run.
    pub workspace_folder: String,
    /// Its own variables.
    pub env: BTreeMap<String, String>,
    /// `remoteEnv`; `None` removes a variable.
    pub remote_env: BTreeMap<String, Option<String>>,
    /// The environment that the remote user's shell reported last.
    pub probed: Option<Probed>,
    /// The lifecycle commands that have run to their end: once per container, except `postStartCommand`, which runs
    /// once per start. The value records the start's time.
    pub done: BTreeMap<String, String>,
    /// Whether the container has passed the stage after which it may be used, since its last start.
    #[serde(skip)]
    pub usable: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    /// Its user; empty: root.
    pub user: String,
    /// Its metadata label.
    pub metadata: Option<String>,
}

/// The environment that the remote user's shell reported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Probed {
    /// The kind of shell that was started.
    pub kind: UserEnvProbe,
    /// When the container was started, as the runtime reports it.
    pub started_at: String,
    pub env: BTreeMap<String, String>,
}

/// The mark of a stage that runs once per container.
const ONCE: &str = "once";

impl ContainerRecord {
    /// Whether a stage has nothing to do in the container that was started at `started_at`.
    pub(super) fn is_done(&self, stage: Stage, started_at: &str) -> bool {
        mark(stage, started_at).is_some_and(|mark| self.done.get(stage.name()).map(String::as_str) == Some(mark))
    }

    /// Records that a stage has run to its end.
    pub(super) fn set_done(&mut self, stage: Stage, started_at: &str) {
        if let Some(mark) = mark(stage, started_at) {
            self.done.insert(stage.name().to_owned(), mark.to_owned());
        }
    }
}

/// The mark of a stage. `postAttachCommand` has none, because it runs each time.
fn mark(stage: Stage, started_at: &str) -> Option<&str> {
    match stage {
        Stage::OnCreateCommand | Stage::UpdateContentCommand | Stage::PostCreateCommand => Some(ONCE),
        Stage::PostStartCommand => Some(started_at),
        Stage::InitializeCommand | Stage::PostAttachCommand => None,
    }
}

impl Record {
    /// A new environment.
    pub(super) fn new(id: &str, share: &str) -> Self {
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

    /// The status that the API shows; `running` is whether the container runs.
    pub(super) fn status(&self, running: bool) -> EnvironmentStatus {
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

/// The folder of records, one file per environment.
#[derive(Clone, Debug)]
pub(super) struct Store(PathBuf);

impl Store {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// All records that can be read. A file that cannot be read is left in place and logged.
    pub(super) fn load(&self) -> Vec<Record> {
        // An earlier agent made the folder readable for all users.
        let _ = std::fs::set_permissions(&self.0, Permissions::from_mode(0o700));
        let entries = std::fs::read_dir(&self.0).into_iter().flatten().flatten().map(|entry| entry.path());
        let files = entries.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        files
            .filter_map(|path| {
                read(&path).map_err(|error| tracing::warn!("ignoring the record {path:?}: {error}")).ok()
            })
            .collect()
    }

    /// Writes one record. After the call it is on the disk; a crash during the call leaves the earlier record. Records
    /// hold the developer's variables, so only root in the guest may read them.
    pub(super) fn save(&self, record: &Record) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let temporary = self.temporary(&record.id);
        // The new file must not inherit the mode of a file left by an earlier agent.
        remove_file(&temporary)?;
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(record)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, self.path(&record.id))?;
        File::open(&self.0)?.sync_all()
    }

    /// Flushes the rest of the records' disk: the containers and the files that commands created in them, which podman
    /// does not sync. Called before a record refers to them.
    pub(super) fn sync_disk(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        Ok(rustix::fs::syncfs(File::open(&self.0)?)?)
    }

    /// Removes one record, if there is one.
    pub(super) fn remove(&self, id: &str) -> io::Result<()> {
        // A power cut may have left a file that was being written.
        remove_file(&self.temporary(id))?;
        remove_file(&self.path(id))?;
        // The runner counts the environment's runs from 1 again. A record that came back after a power cut would refuse
        // them. The disk's one journal also commits what was removed before: the container.
        match File::open(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            folder => folder?.sync_all(),
        }
    }

    fn temporary(&self, id: &str) -> PathBuf {
        self.0.join(format!("{id}.new"))
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

/// Reads a record. A run of `up` that was in progress when the agent died becomes a failed one.
fn read(path: &Path) -> io::Result<Record> {
    let mut record: Record = serde_json::from_slice(&std::fs::read(path)?)?;
    if record.phase == EnvironmentPhase::Starting {
        record.phase = EnvironmentPhase::Failed;
        record.problem =
            Some(Problem::new(Code::Unavailable, "its start was interrupted; bring the environment up again"));
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
    fn a_saved_record_is_loaded() {
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
        // The mode that an earlier agent set.
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
    fn an_interrupted_start_has_failed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().into());
        store.save(&record(EnvironmentPhase::Starting)).unwrap();
        let status = store.load()[0].status(true);
        assert_eq!(status.phase, EnvironmentPhase::Failed);
        assert!(status.problem.unwrap().detail.contains("again"));
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
