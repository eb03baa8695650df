//! One run of `up`, step by step.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use garret_api::agent::{EnvironmentPhase, EnvironmentSpec};
use garret_api::{Code, Problem};
use garret_devcontainer::{
    Document, Folder, METADATA_LABEL, Merged, Resolved, Stage, UserEnvProbe, Workspace, find, resolve,
};

use super::entry::Entry;
use super::journal::{Journal, Output, StepFailed};
use super::mounts::{ENGINE_SOCKET, WorkspacePaths};
use super::plan::{self, RunPlan};
use super::podman::{Failure, Image, Podman};
use super::record::{ContainerRecord, ImageRecord, Probed, Record};
use super::remote::USER_FILES;
use super::{Dirs, engine_socket, git, hooks, remote, runtime, source};
use crate::blocking::Blocking;
use crate::exec;
use crate::setup::HostFacts;
use crate::users::Users;

/// Reading the workspace: its files are on another machine, possibly on a network file system of that machine.
pub(super) static WORKSPACE: Blocking = Blocking::new("reading the workspace", 16, Duration::from_secs(60));

pub(super) struct BringUp {
    pub dirs: Dirs,
    pub facts: Arc<HostFacts>,
    pub podman: Podman,
    pub entry: Arc<Entry>,
    pub journal: Arc<Journal>,
    pub spec: EnvironmentSpec,
    /// What must be removed if the run is cancelled.
    pub leftovers: Leftovers,
}

/// The step in which a failure to write the record is reported.
const SAVE_STEP: &str = "save state";

/// The engine calls that have started and have not ended successfully.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    building: AtomicBool,
    creating: AtomicBool,
}

/// A devcontainer.json that has been read.
pub(super) struct Read {
    pub resolved: Resolved,
    /// Its text, kept to detect a later change.
    pub text: String,
    /// Its folder in the guest.
    pub folder: PathBuf,
}

/// The data of a container that the steps after its start need.
struct Container {
    merged: Merged,
    users: Users,
    started_at: String,
}

impl BringUp {
    /// Runs all steps. The container stays if a step fails.
    pub(super) async fn execute(&mut self) -> Result<(), StepFailed> {
        self.record_begin().await?;
        // Checked after the record was written, because that waits for a removal that is still writing.
        if self.entry.is_removed() {
            let renewed = self.entry.renew(&self.spec.share).await;
            renewed.map_err(|problem| StepFailed { step: SAVE_STEP.into(), problem })?;
            self.record_begin().await?;
        }
        self.spec.rebuild &= !self.is_built();
        self.steps().await
    }

    async fn record_begin(&self) -> Result<(), StepFailed> {
        self.record(|record| {
            record.share.clone_from(&self.spec.share);
            record.generation = record.generation.max(self.spec.generation);
            record.phase = EnvironmentPhase::Starting;
            record.problem = None;
        })
        .await
    }

    async fn steps(&self) -> Result<(), StepFailed> {
        let read = self.journal.step("read devcontainer.json", async |output| self.read(output).await).await?;
        self.initialize(&read).await?;
        let running = self.container(&read).await?;
        self.probe(&read, &running).await?;
        if self.lifecycle(&running).await? {
            // The commands may have changed the environment that the user's shell sets.
            self.record(|record| record.container.as_mut().map(|container| container.probed = None)).await?;
            self.probe(&read, &running).await?;
        }
        Ok(())
    }

    fn id(&self) -> &str {
        &self.entry.id
    }

    /// Whether this run has created the container. This includes the part of the run that an earlier agent carried out.
    fn is_built(&self) -> bool {
        let made_by = self.entry.with(|record| record.container.as_ref().map_or(0, |container| container.generation));
        made_by != 0 && made_by == self.spec.generation
    }

    /// Changes the record; a failure is reported as a step of the run.
    async fn record<T>(&self, change: impl FnOnce(&mut Record) -> T) -> Result<(), StepFailed> {
        let recorded = self.entry.update(change).await;
        recorded.map_err(|problem| StepFailed { step: SAVE_STEP.into(), problem })
    }

    pub(super) fn workspace(&self) -> PathBuf {
        self.dirs.workspaces.join(&self.spec.share)
    }

    async fn read(&self, output: &Output) -> Result<Read, Problem> {
        let (workspace, spec) = (self.workspace(), self.spec.clone());
        let read = WORKSPACE.run(move || read(&workspace, spec)).await??;
        for notice in &read.resolved.notices {
            output.line(&format!("warning: {}", notice.0));
        }
        let changed = self.entry.with(|record| record.config.as_ref().is_some_and(|config| *config != read.text));
        if changed && !self.spec.rebuild {
            output.line(
                "warning: devcontainer.json has changed: its changes to the container take effect with --rebuild",
            );
        }
        Ok(read)
    }

    /// `initializeCommand` runs in the guest, in the workspace.
    async fn initialize(&self, read: &Read) -> Result<(), StepFailed> {
        let Some(command) = &read.resolved.config.own.initialize_command else { return Ok(()) };
        let workspace = self.workspace();
        let users = self.journal.quiet_step(Stage::InitializeCommand.name(), async || Users::of_guest().await).await?;
        hooks::run(&self.journal, Stage::InitializeCommand, command, |mut request| {
            request.cwd = Some(workspace.to_string_lossy().into_owned());
            exec::guest_process(&users, request, &self.facts.engine_env)
        })
        .await
    }

    /// The environment's container: the existing one, started if needed, or a new one.
    async fn container(&self, read: &Read) -> Result<Container, StepFailed> {
        let known = if self.spec.rebuild {
            self.remove_all().await?;
            None
        } else {
            self.existing().await?
        };
        let container = match known {
            Some(container) => container,
            None => self.create(read).await?,
        };
        if self.spec.rebuild {
            self.podman.prune_images(self.id()).await;
        }
        self.journal.quiet_step("read container", async || self.record_settings(read, container).await).await
    }

    /// The recorded container, or one that is missing in the record; it has been started.
    async fn existing(&self) -> Result<Option<ContainerRecord>, StepFailed> {
        let recorded = self.entry.with(|record| record.container.clone());
        let started = match recorded {
            Some(container) => self.ensure_started(container).await?,
            None => None,
        };
        if started.is_some() { Ok(started) } else { self.adopt().await }
    }

    /// Removes the recorded container and those that the record does not know.
    async fn remove_all(&self) -> Result<(), StepFailed> {
        self.journal
            .step("remove container", async |_| {
                self.podman.remove_containers_of(self.id()).await?;
                self.entry.update(|record| record.container = None).await
            })
            .await
    }

    /// Adopts a container that is missing in the record: it may hold a day's work.
    async fn adopt(&self) -> Result<Option<ContainerRecord>, StepFailed> {
        let lost = self.journal.quiet_step("find container", async || self.find_lost().await).await?;
        match lost {
            Some(container) => self.ensure_started(container).await,
            None => Ok(None),
        }
    }

    async fn find_lost(&self) -> Result<Option<ContainerRecord>, Problem> {
        let Some(id) = self.podman.containers(self.id()).await?.into_iter().next() else { return Ok(None) };
        let Some(found) = self.podman.container(&id).await? else { return Ok(None) };
        tracing::warn!("{}: container {id} is not in its record and is adopted", self.id());
        let image = self.podman.image(&found.image).await?.unwrap_or_default();
        let engine_socket = found.mounts.iter().any(|mount| mount.source == ENGINE_SOCKET);
        let container =
            ContainerRecord { id, image: image_record(&image), engine_socket, ..ContainerRecord::default() };
        let volumes = found.mounts.into_iter().filter(|mount| mount.kind == "volume").map(|mount| mount.name);
        self.entry
            .update(|record| {
                record.container = Some(container.clone());
                record.volumes.extend(volumes);
            })
            .await?;
        Ok(Some(container))
    }

    async fn ensure_started(&self, container: ContainerRecord) -> Result<Option<ContainerRecord>, StepFailed> {
        if runtime::is_running(&container.id) {
            return Ok(Some(container));
        }
        self.journal.step("start container", async |_| self.start(container).await).await
    }

    /// Starts the container. Returns `None` if it was removed by other means.
    async fn start(&self, container: ContainerRecord) -> Result<Option<ContainerRecord>, Problem> {
        if container.engine_socket {
            engine_socket::serve().await?;
        }
        match self.podman.output(["start", &container.id]).await {
            Ok(_) => Ok(Some(ContainerRecord { usable: false, ..container })),
            Err(failure) if failure.stderr.contains("no such container") => Ok(None),
            Err(failure) => Err(failure.problem(Code::EngineFailed, || {
                format!("the container could not be started: {failure}; bring it up with --rebuild")
            })),
        }
    }

    async fn create(&self, read: &Read) -> Result<ContainerRecord, StepFailed> {
        let (name, image) = source::image(self, read).await?;
        let image_record = image_record(&image);
        let merged = self.journal.quiet_step("read image", async || plan::merge(&read.resolved, &image_record)).await?;
        let user = plan::remote_user(&read.resolved, &merged, &image_record);
        let name = source::with_owner_ids(self, &user, &merged, name, &image).await?;
        self.journal
            .step("create container", async |_| {
                let workspace = self.workspace();
                let variables = plan::variables(&merged.container_env);
                let env_file = self.secret_file(&variables.file)?;
                let args = plan::run_args(&RunPlan {
                    id: self.id(),
                    workspace: WorkspacePaths { host: self.host_path(), guest: &workspace.to_string_lossy() },
                    resolved: &read.resolved,
                    merged: &merged,
                    image: &name,
                    config: &image.config,
                    env_file: &env_file.path().to_string_lossy(),
                })?;
                let engine_socket = plan::needs_engine_socket(&args);
                if engine_socket {
                    engine_socket::serve().await?;
                }
                let id = self.run_container(&args, variables.inherited).await?;
                let generation = self.spec.generation;
                let container = ContainerRecord {
                    id,
                    generation,
                    image: image_record,
                    engine_socket,
                    ..ContainerRecord::default()
                };
                self.entry.sync_disk().await?;
                self.entry
                    .update(|record| {
                        record.container = Some(container.clone());
                        record.config = Some(read.text.clone());
                        record.volumes.extend(plan::volumes(&merged));
                    })
                    .await?;
                Ok(container)
            })
            .await
    }

    /// A file that only this user can read. It is removed on drop, after the engine has read it.
    pub(super) fn secret_file(&self, text: &str) -> Result<tempfile::NamedTempFile, Problem> {
        let written = tempfile::NamedTempFile::new_in(&self.dirs.run)
            .and_then(|mut file| file.write_all(text.as_bytes()).map(|()| file));
        written
            .map_err(|error| Problem::new(Code::Internal, format!("cannot write the container's variables: {error}")))
    }

    /// Creates and starts a container. One that cannot be started is removed, so that the next run creates a new one.
    async fn run_container(&self, args: &[String], env: BTreeMap<String, String>) -> Result<String, Problem> {
        let name = plan::container_name(self.id());
        self.leftovers.creating.store(true, Ordering::Relaxed);
        let podman = self.podman.with_env(env);
        let mut ran = podman.output(args).await;
        if ran.as_ref().is_err_and(|failure| self.is_partly_created(failure, &name)) {
            ran = match self.podman.remove_containers([name.clone()]).await {
                Ok(()) => podman.output(args).await,
                Err(failure) => Err(failure),
            };
        }
        self.leftovers.creating.store(false, Ordering::Relaxed);
        let problem = match ran {
            Ok(printed) => {
                let id = printed.lines().last().unwrap_or_default().to_owned();
                if let Some(running) = runtime::running(&id) {
                    let trusted = USER_FILES.run(move || git::trust_workspaces(&runtime::root_of(running.pid))).await;
                    if let Err(error) = trusted
                        .map_err(|problem| problem.to_string())
                        .and_then(|done| done.map_err(|error| error.to_string()))
                    {
                        tracing::warn!("{name}: git may complain of the workspace's owner: {error}");
                    }
                    return Ok(id);
                }
                let log = self.podman.output(["logs", "--tail", "1", &id]).await.unwrap_or_default();
                let log = log.trim();
                let to_do = "set \"overrideCommand\" to true to keep it";
                let message = format!("its command ended at once, with {log:?}; {to_do}");
                Problem::new(Code::EngineFailed, format!("the container could not be created: {message}"))
            }
            Err(failure) if failure.external_container(&name).is_some() => Problem::new(
                Code::EngineFailed,
                "podman does not know the container any more, but its files are there: `garret up --rebuild` removes them and \
                 makes a new one",
            ),
            Err(failure) => {
                failure.problem(Code::EngineFailed, || format!("the container could not be created: {failure}"))
            }
        };
        self.remove_unrecorded().await;
        Err(problem)
    }

    /// Whether the name belongs to a container that podman was killed while creating. A recorded container was created
    /// completely, even if podman has lost it since: it may hold a day's work.
    fn is_partly_created(&self, failure: &Failure, name: &str) -> bool {
        failure.external_container(name).is_some_and(|id| self.entry.container_id().as_deref() != Some(id))
    }

    /// Removes the remains of a failed call that creates a container.
    async fn remove_unrecorded(&self) {
        let known = self.entry.container_id();
        let mut found = self.podman.containers(self.id()).await.unwrap_or_default();
        found.retain(|id| Some(id) != known.as_ref());
        self.podman.remove_containers(found).await.ok();
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

    /// Waits for the cancelled calls of the engine, and removes what they have left.
    pub(super) async fn clean_up(&self, begun: SystemTime) {
        self.podman.idle().await;
        if self.leftovers.creating.load(Ordering::Relaxed) {
            self.remove_unrecorded().await;
        }
        if self.leftovers.building.load(Ordering::Relaxed) {
            let since = begun.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            if let Err(failure) = self.podman.remove_build_containers(since).await {
                tracing::warn!("{}: an unfinished build's containers could not be removed: {failure}", self.id());
            }
        }
    }

    /// Records the settings that follow from the container and devcontainer.json together.
    async fn record_settings(&self, read: &Read, container: ContainerRecord) -> Result<Container, Problem> {
        let merged = plan::merge(&read.resolved, &container.image)?;
        let running = runtime::running(&container.id)
            .ok_or_else(|| Problem::new(Code::EngineFailed, "the container has ended; its output is in its log"))?;
        let users = remote::users(running.pid).await?;
        let remote_user = plan::remote_user(&read.resolved, &merged, &container.image);
        remote::user(&users, &remote_user)?;
        let remote_env = merged.remote_env_in(read.resolved.file(), &running.env);
        let container = ContainerRecord {
            remote_user,
            workspace_folder: read.resolved.workspace_folder.clone(),
            env: running.env,
            remote_env: remote_env.map_err(|error| Problem::new(Code::Invalid, error.to_string()))?,
            usable: container.usable || merged.usable_after() == Stage::InitializeCommand,
            ..container
        };
        self.entry.update(|record| record.container = Some(container)).await?;
        Ok(Container { merged, users, started_at: running.started_at })
    }

    /// Reads the environment of the remote user's shell, unless it has been read since the container was started.
    async fn probe(&self, read: &Read, running: &Container) -> Result<(), StepFailed> {
        let kind = running.merged.user_env_probe.unwrap_or_default();
        let started_at = &running.started_at;
        let container = self.container_record();
        let known =
            container.probed.as_ref().is_some_and(|known| known.kind == kind && known.started_at == *started_at);
        if known {
            return Ok(());
        }
        let ask =
            async |output: &Output| remote::probe(&container, &running.users, kind, |line| output.line(line)).await;
        let env =
            if kind == UserEnvProbe::None { None } else { self.journal.step("read user environment", ask).await? };
        let probed = Probed { kind, started_at: started_at.clone(), env: env.unwrap_or_default() };
        tracing::debug!("{}: {} variables of the user's shell", read.resolved.id, probed.env.len());
        self.record(|record| record.container.as_mut().map(|container| container.probed = Some(probed))).await
    }

    /// Runs the lifecycle commands that are due. Returns true if a command ran that may change the container's setup.
    async fn lifecycle(&self, running: &Container) -> Result<bool, StepFailed> {
        let started_at = &running.started_at;
        let mut any = false;
        for stage in Stage::IN_CONTAINER {
            let container = self.container_record();
            let due = !container.is_done(stage, started_at);
            let commands = if due { running.merged.commands(stage) } else { &[] };
            for command in commands {
                any |= stage < Stage::PostAttachCommand;
                let prepare = |request| remote::process(&container, &running.users, request);
                hooks::run(&self.journal, stage, command, prepare).await?;
            }
            if !commands.is_empty() {
                let synced = self.entry.sync_disk().await;
                synced.map_err(|problem| StepFailed { step: stage.name().to_owned(), problem })?;
            }
            let usable = stage >= running.merged.usable_after();
            if due || usable != container.usable {
                self.record(|record| {
                    if let Some(container) = &mut record.container {
                        container.set_done(stage, started_at);
                        container.usable |= usable;
                    }
                })
                .await?;
            }
        }
        Ok(any)
    }

    fn container_record(&self) -> ContainerRecord {
        self.entry.with(|record| record.container.clone()).unwrap_or_default()
    }

    pub(super) fn host_path(&self) -> &str {
        self.spec.host_path.trim_end_matches('/')
    }

    /// Records the run's result. A result that cannot be recorded is a failure.
    pub(super) async fn record_result(&self, result: Result<(), StepFailed>) -> Result<(), StepFailed> {
        let problem = result.as_ref().err().map(|failed| failed.problem.clone());
        let recorded = self.record(|record| set_end(record, problem)).await;
        if let (Ok(()), Err(failed)) = (&result, &recorded) {
            // In memory it is recorded even if this write to the disk fails as well.
            let problem = Some(failed.problem.clone());
            self.record(|record| set_end(record, problem)).await.ok();
            return recorded;
        }
        result
    }
}

fn set_end(record: &mut Record, problem: Option<Problem>) {
    record.phase = if problem.is_some() { EnvironmentPhase::Failed } else { EnvironmentPhase::Ready };
    record.problem = problem;
}

fn image_record(image: &Image) -> ImageRecord {
    let metadata = image.config.label(METADATA_LABEL).map(str::to_owned);
    ImageRecord { user: image.config.user.clone(), metadata }
}

fn read(workspace: &Path, spec: EnvironmentSpec) -> Result<Read, Problem> {
    let invalid = |message: String| Problem::new(Code::Invalid, message);
    if !workspace.is_dir() {
        return Err(invalid(format!("the workspace {} is not a folder of this machine", spec.host_path)));
    }
    let at = |error: garret_devcontainer::Error| invalid(format!("{}: {error}", spec.host_path));
    let files = Folder(workspace);
    let config_file = find(&files, spec.config.as_deref()).map_err(at)?;
    let bytes = files.read(&config_file).map_err(|error| invalid(format!("{config_file} cannot be read: {error}")))?;
    let document = Document::parse(&config_file, &bytes).map_err(|error| invalid(error.to_string()))?;
    let folder = workspace.join(&config_file).parent().unwrap_or(workspace).to_owned();
    let resolved =
        resolve(&document, Workspace { local_folder: spec.host_path.clone(), config_file, local_env: spec.local_env });
    let resolved = resolved.map_err(|error| invalid(error.to_string()))?;
    Ok(Read { resolved, text: String::from_utf8_lossy(&bytes).into_owned(), folder })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(host_path: &str) -> EnvironmentSpec {
        EnvironmentSpec {
            share: "s".into(),
            host_path: host_path.into(),
            config: None,
            local_env: Default::default(),
            rebuild: false,
            generation: 0,
        }
    }

    fn error(workspace: &Path) -> String {
        read(workspace, spec("/home/ann/p")).err().expect("it fails").detail
    }

    #[test]
    fn a_bad_workspace_is_one_clear_line() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(error(&folder.path().join("x")), "the workspace /home/ann/p is not a folder of this machine");
        assert!(error(folder.path()).starts_with("/home/ann/p: no devcontainer.json in the workspace"));
        std::fs::write(folder.path().join("devcontainer.json"), "{\n \"image\" 5}").unwrap();
        assert!(error(folder.path()).starts_with("devcontainer.json:2:"), "{}", error(folder.path()));
        std::fs::write(folder.path().join("devcontainer.json"), vec![b' '; 1 << 21]).unwrap();
        assert!(error(folder.path()).contains("larger than 1048576 bytes"), "{}", error(folder.path()));
        for name in ["a", "b"] {
            let folder = folder.path().join(".devcontainer").join(name);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("devcontainer.json"), r#"{"image": "x"}"#).unwrap();
        }
        std::fs::remove_file(folder.path().join("devcontainer.json")).unwrap();
        assert!(error(folder.path()).contains("several devcontainer.json"));
        let chosen = EnvironmentSpec { config: Some("a".into()), ..spec("/home/ann/p") };
        let read = read(folder.path(), chosen).expect("the chosen one is read");
        assert_eq!(read.folder, folder.path().join(".devcontainer/a"));
    }
}
