//! The container of an environment: found, adopted or created, and started.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use garret_api::{Code, Problem};
use garret_devcontainer::{METADATA_LABEL, Merged, Stage};

use super::inspect::Image;
use super::journal::StepFailed;
use super::mounts::{ENGINE_SOCKET, WorkspacePaths};
use super::plan::{self, RunPlan};
use super::podman::Failure;
use super::read::Read;
use super::record::{ContainerRecord, ImageRecord};
use super::remote::USER_FILES;
use super::run::Run;
use super::{engine_socket, git, names, remote, runtime, source};
use crate::users::Users;

/// The data of a container that the steps after its start need.
pub(super) struct Container {
    pub merged: Merged,
    pub users: Users,
    pub started_at: String,
}

/// The environment's container: the existing one, started if needed, or a new one.
pub(super) async fn container(run: &Run, read: &Read) -> Result<Container, StepFailed> {
    let known = if run.spec.rebuild {
        remove_all(run).await?;
        None
    } else {
        existing(run).await?
    };
    let container = match known {
        Some(container) => container,
        None => create(run, read).await?,
    };
    if run.spec.rebuild {
        run.podman.prune_images(run.id()).await;
    }
    run.journal.quiet_step("read container", async || record_settings(run, read, container).await).await
}

/// The recorded container, or one that is missing in the record; it has been started.
async fn existing(run: &Run) -> Result<Option<ContainerRecord>, StepFailed> {
    let recorded = run.entry.with(|record| record.container.clone());
    let started = match recorded {
        Some(container) => ensure_started(run, container).await?,
        None => None,
    };
    if started.is_some() { Ok(started) } else { adopt(run).await }
}

/// Removes the recorded container and those that the record does not know.
async fn remove_all(run: &Run) -> Result<(), StepFailed> {
    run.journal
        .step("remove container", async |_| {
            run.podman.remove_containers_of(run.id()).await?;
            run.entry.update(|record| record.container = None).await
        })
        .await
}

/// Adopts a container that is missing in the record: it may hold a day's work.
async fn adopt(run: &Run) -> Result<Option<ContainerRecord>, StepFailed> {
    let lost = run.journal.quiet_step("find container", async || find_lost(run).await).await?;
    match lost {
        Some(container) => ensure_started(run, container).await,
        None => Ok(None),
    }
}

async fn find_lost(run: &Run) -> Result<Option<ContainerRecord>, Problem> {
    let Some(id) = run.podman.containers(run.id()).await?.into_iter().next() else { return Ok(None) };
    let Some(found) = run.podman.container(&id).await? else { return Ok(None) };
    tracing::warn!("container {id} is not in its record and is adopted");
    let image = run.podman.image(&found.image).await?.unwrap_or_default();
    let engine_socket = found.mounts.iter().any(|mount| mount.source == ENGINE_SOCKET);
    let container = ContainerRecord { id, image: image_record(&image), engine_socket, ..ContainerRecord::default() };
    let volumes = found.mounts.into_iter().filter(|mount| mount.kind == "volume").map(|mount| mount.name);
    run.entry
        .update(|record| {
            record.container = Some(container.clone());
            record.volumes.extend(volumes);
        })
        .await?;
    Ok(Some(container))
}

async fn ensure_started(run: &Run, container: ContainerRecord) -> Result<Option<ContainerRecord>, StepFailed> {
    if runtime::is_running(&container.id) {
        return Ok(Some(container));
    }
    run.journal.step("start container", async |_| start(run, container).await).await
}

/// Starts the container. Returns `None` if it was removed by other means.
async fn start(run: &Run, container: ContainerRecord) -> Result<Option<ContainerRecord>, Problem> {
    if container.engine_socket {
        engine_socket::serve().await?;
    }
    match run.podman.output(["start", &container.id]).await {
        Ok(_) => Ok(Some(ContainerRecord { usable: false, ..container })),
        Err(failure) if failure.stderr.contains("no such container") => Ok(None),
        Err(failure) => Err(failure.problem(Code::EngineFailed, || {
            format!("the container could not be started: {failure}; bring it up with --rebuild")
        })),
    }
}

async fn create(run: &Run, read: &Read) -> Result<ContainerRecord, StepFailed> {
    let (name, image) = source::image(run, read).await?;
    let image_record = image_record(&image);
    let merged = run.journal.quiet_step("read image", async || plan::merge(&read.resolved, &image_record)).await?;
    let user = plan::remote_user(&read.resolved, &merged, &image_record);
    let name = source::with_owner_ids(run, &user, &merged, name, &image).await?;
    run.journal
        .step("create container", async |_| {
            let workspace = run.workspace();
            let variables = plan::variables(&merged.container_env);
            let env_file = run.secret_file(&variables.file)?;
            let args = plan::run_args(&RunPlan {
                id: run.id(),
                workspace: WorkspacePaths { host: run.host_path(), guest: &workspace.to_string_lossy() },
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
            let id = run_container(run, &args, variables.inherited).await?;
            let generation = run.spec.generation;
            let container =
                ContainerRecord { id, generation, image: image_record, engine_socket, ..ContainerRecord::default() };
            run.entry.sync_disk().await?;
            run.entry
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

/// Creates and starts a container. One that cannot be started is removed, so that the next run creates a new one.
async fn run_container(run: &Run, args: &[String], env: BTreeMap<String, String>) -> Result<String, Problem> {
    let name = names::container_name(run.id());
    run.leftovers.creating.store(true, Ordering::Relaxed);
    let podman = run.podman.with_env(env);
    let mut ran = podman.output(args).await;
    if ran.as_ref().is_err_and(|failure| is_partly_created(run, failure, &name)) {
        ran = match run.podman.remove_containers([name.clone()]).await {
            Ok(()) => podman.output(args).await,
            Err(failure) => Err(failure),
        };
    }
    run.leftovers.creating.store(false, Ordering::Relaxed);
    let problem = match ran {
        Ok(printed) => {
            let id = printed.lines().last().unwrap_or_default().to_owned();
            if let Some(running) = runtime::running(&id) {
                let trusted = USER_FILES.run(move || git::trust_workspaces(&runtime::root_of(running.pid))).await;
                if let Err(error) = trusted
                    .map_err(|problem| problem.to_string())
                    .and_then(|done| done.map_err(|error| error.to_string()))
                {
                    tracing::warn!("git may complain of the workspace's owner: {error}");
                }
                return Ok(id);
            }
            let log = run.podman.output(["logs", "--tail", "1", &id]).await.unwrap_or_default();
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
    run.remove_unrecorded().await;
    Err(problem)
}

/// Whether the name belongs to a container that podman was killed while creating. A recorded container was created
/// completely, even if podman has lost it since: it may hold a day's work.
fn is_partly_created(run: &Run, failure: &Failure, name: &str) -> bool {
    failure.external_container(name).is_some_and(|id| run.entry.container_id().as_deref() != Some(id))
}

/// Records the settings that follow from the container and devcontainer.json together.
async fn record_settings(run: &Run, read: &Read, container: ContainerRecord) -> Result<Container, Problem> {
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
    run.entry.update(|record| record.container = Some(container)).await?;
    Ok(Container { merged, users, started_at: running.started_at })
}

fn image_record(image: &Image) -> ImageRecord {
    let metadata = image.config.label(METADATA_LABEL).map(str::to_owned);
    ImageRecord { user: image.config.user.clone(), metadata }
}
