//! `/v1/environments`

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use garret_api::agent::{EnvironmentPhase, EnvironmentStatus};
use garret_api::runner::{
    Desired, Environment, EnvironmentRequest, MachinePhase, MachineRequest, OperationKind, Outcome,
};
use garret_api::{Code, Problem, ProblemDetails};
use hyper::StatusCode;

use super::identity::Owner;
use super::machines::request_machine;
use super::running::require_running;
use super::target::Target;
use super::{Peer, Refusal, proxy};
use crate::daemon::state::{
    EnvironmentRow, MachineRow, NewOperation, ReadTx, Scope, environments, events, machines, operations,
};
use crate::daemon::{Daemon, requests};
use crate::environment_id::environment_id;
use crate::host::share::{ExistingMount, ShareSpec};
use garret_http::Body;

/// How much longer than `stop_deadline_s` a removal may take before the request fails. The agent has `stop_deadline_s`
/// to release the workspace; the VMM needs some seconds more.
const REMOVAL_SLACK: Duration = Duration::from_secs(20);
/// The most environments of one machine.
const ENVIRONMENTS_MAX: usize = 256;
/// The most that their variables take together, in bytes: the state is read often.
const LOCAL_ENV_ALL_MAX: usize = 1 << 20;
/// How long the agent may take to report a container's state.
const STATUS_TIMEOUT: Duration = Duration::from_secs(3);

#[utoipa::path(
    get,
    path = "/v1/environments", operation_id = "list_environments",
    responses((status = 200, description = "The environments that the caller may see.", body = Vec<Environment>))
)]
pub(super) async fn list(State(daemon): State<Arc<Daemon>>, peer: Peer) -> Result<Json<Vec<Environment>>, Refusal> {
    let list = daemon
        .read(move |db| {
            let mut shown = Vec::new();
            for machine in machines::all(db)?.iter().filter(|machine| peer.may(machine.owner)) {
                for row in environments::of_machine(db, machine.id)?.into_iter().filter(|row| !row.removed) {
                    shown.push(show_row(db, machine, row)?);
                }
            }
            // In the order of their ids, whatever machine they are in.
            shown.sort_by(|one, other| one.id.cmp(&other.id));
            Ok(shown)
        })
        .await?;
    Ok(Json(list))
}

#[utoipa::path(
    get,
    path = "/v1/environments/{id}", operation_id = "get_environment",
    params(("id" = String, Path, description = "The environment's id.")),
    responses((status = 200, description = "The environment.", body = Environment), (status = 404, body = ProblemDetails))
)]
pub(super) async fn show(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(id): Path<String>,
) -> Result<Json<Environment>, Refusal> {
    let (row, machine) = find(&daemon, peer, &id).await?;
    Ok(Json(daemon.read(move |db| show_row(db, &machine, row)).await?))
}

#[utoipa::path(
    put,
    path = "/v1/environments/{id}", operation_id = "put_environment",
    params(("id" = String, Path, description = "The environment's id.")),
    request_body = EnvironmentRequest,
    responses(
        (status = 200, description = "The environment with its new settings; it may not be running yet.", body = Environment),
        (status = 400, body = ProblemDetails),
        (status = 403, description = "The caller may not read and write the workspace, or may have no machine.", body = ProblemDetails),
        (status = 409, description = "The host does not have enough memory, or the machine is being removed.", body = ProblemDetails),
    )
)]
pub(super) async fn put(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(id): Path<String>,
    Body(request): Body<EnvironmentRequest>,
) -> Result<Json<Environment>, Refusal> {
    requests::check_environment(&request)?;
    let owner = owner_of(&daemon, peer, &id, &request).await?;
    let owned_by = Owner::find(&daemon, owner, peer.gid).await?;
    let found = match request.desired {
        Desired::Running => {
            let row = daemon.read(move |db| machines::of_owner(db, owner)).await?;
            if row.is_none() {
                // If the owner may have no machine, the folder is not opened either: each open costs a root process.
                daemon.limits(owner).await?;
            }
            let developer = daemon.developer(owner, owned_by.gid).await;
            let mount_point = row.map(|row| daemon.paths(row.id).workspace(&id));
            let spec = ShareSpec { folder: request.workspace.clone(), developer, mount_point, mount: None };
            daemon.workspaces.share(spec).await?
        }
        Desired::Stopped => ExistingMount::Nothing,
    };
    let desired = (request.desired == Desired::Running).then_some(Desired::Running);
    let request_of_machine = MachineRequest { desired, ..Default::default() };
    let machine = request_machine(&daemon, Target::OfOwner(owner), &owned_by, peer.uid, request_of_machine).await?;
    // If the workspace was created again since, its container still has the earlier folder, so it is started again.
    let stopped = found == ExistingMount::Other || container_has_stopped(&daemon, &machine, &id).await;
    let (policy, settings) = (daemon.config.policy.clone(), daemon.config.machine.clone());
    let machine_id = machine.id;
    let environment = daemon
        .write(move |db| {
            let mut kept = match environments::get(db, &id)? {
                Some(row) if row.machine != machine.id => return Ok(Err(taken(&id))),
                Some(row) => row,
                None if environments::of_machine(db, machine.id)?.len() >= ENVIRONMENTS_MAX => {
                    let said =
                        format!("a machine has at most {ENVIRONMENTS_MAX} environments: remove one with `garret rm`");
                    return Ok(Err(Problem::new(Code::Conflict, said)));
                }
                None => requests::new_environment(&id, machine.id, &request),
            };
            if stopped && kept.status.phase == EnvironmentPhase::Ready {
                kept.status.phase = EnvironmentPhase::Stopped;
            }
            let row = requests::apply_environment(&kept, &request, &policy);
            let mut variables = requests::local_env_bytes(&row);
            for other in environments::of_machine(db, machine.id)?.iter().filter(|other| other.id != row.id) {
                variables += requests::local_env_bytes(other);
            }
            if variables > LOCAL_ENV_ALL_MAX {
                let said = format!(
                    "the developer's environments keep more than {LOCAL_ENV_ALL_MAX} bytes of variables: \
                     `garret env clear` removes some"
                );
                return Ok(Err(Problem::new(Code::Conflict, said)));
            }
            if row.generation != kept.generation {
                environments::cancel_run(db, &kept, "another request replaced this run")?;
            }
            environments::put(db, &row)?;
            if let Some(kind) = requests::environment_operation(&kept, &row) {
                let allowed = requests::environment_operation_time(kind, &settings);
                let environment = Some((&*row.id, row.generation));
                let (machine, requested_by) = (machine.id, peer.uid);
                operations::begin(db, &NewOperation { kind, machine, environment, requested_by, allowed })?;
            }
            show_row(db, &machine, row).map(Ok)
        })
        .await??;
    daemon.poke(machine_id);
    Ok(Json(environment))
}

/// The environment's owner. An id that is neither the caller's own nor one they may change reveals nothing about
/// others.
async fn owner_of(daemon: &Daemon, peer: Peer, id: &str, request: &EnvironmentRequest) -> Result<u32, Refusal> {
    let name = id.to_owned();
    let kept = daemon.read(move |db| with_machine(db, &name)).await?;
    if let Some((row, machine)) = kept.as_ref().filter(|(_, machine)| peer.may(machine.owner)) {
        return match row.workspace == request.workspace {
            true => Ok(machine.owner),
            false => {
                Err(Refusal::new(Code::Conflict, format!("{id} is the environment of {}", row.workspace.display())))
            }
        };
    }
    let own = environment_id(peer.uid, &request.workspace);
    match own == id {
        true if kept.is_some() => Err(taken(id).into()),
        true => Ok(peer.uid),
        false => Err(Refusal::new(
            Code::Invalid,
            format!("the environment of {} has the id {own}", request.workspace.display()),
        )),
    }
}

/// Two developers' paths have the same hash. This does not happen by chance, but a search might find such a path.
fn taken(id: &str) -> Problem {
    Problem::new(Code::Conflict, format!("the id {id} is in use: move the workspace to another path"))
}

/// Asks the agent: a container may have ended since the last query. If the agent does not answer, the container counts
/// as running.
async fn container_has_stopped(daemon: &Daemon, machine: &MachineRow, id: &str) -> bool {
    if machine.phase != MachinePhase::Running {
        return false;
    }
    let _needed = daemon.wake(machine).await;
    let agent = daemon.agent(machine.id, STATUS_TIMEOUT);
    match agent.get::<EnvironmentStatus>(&format!("/v1/environments/{id}")).await {
        Ok(status) => status.phase == EnvironmentPhase::Stopped,
        Err(error) => error.status() == Some(404),
    }
}

#[utoipa::path(
    delete,
    path = "/v1/environments/{id}", operation_id = "delete_environment",
    params(("id" = String, Path, description = "The environment's id.")),
    responses(
        (status = 204, description = "It is removed. If the machine does not run, its container is removed at the next start."),
        (status = 404, body = ProblemDetails)
    )
)]
pub(super) async fn remove(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let (row, machine) = find(&daemon, peer, &id).await?;
    let mut changes = daemon.changes.subscribe();
    let kind = OperationKind::Remove;
    let allowed = requests::environment_operation_time(kind, &daemon.config.machine);
    daemon
        .write(move |db| {
            // A removal that was requested before continues, as the operation that it is.
            if environments::get(db, &row.id)?.is_some_and(|row| row.removed) {
                return Ok(());
            }
            let Some(row) = environments::remove(db, row.machine, &row.id)? else { return Ok(()) };
            let (machine, environment) = (row.machine, Some((&*row.id, row.generation)));
            operations::begin(db, &NewOperation { kind, machine, environment, requested_by: peer.uid, allowed })?;
            // Its container is removed at the machine's next start; no client waits for that.
            let runs = machines::get(db, machine)?.is_some_and(|machine| machine.phase == MachinePhase::Running);
            if runs { Ok(()) } else { operations::end(db, machine, Some(&row.id), &Outcome::Succeeded) }
        })
        .await?;
    daemon.poke(machine.id);
    let gone = async {
        loop {
            let (machine, name) = (machine.id, id.clone());
            let left = daemon
                .read(move |db| {
                    Ok((environments::get(db, &name)?.filter(|row| row.removed), machines::get(db, machine)?))
                })
                .await?;
            match left {
                (Some(_), Some(machine)) if machine.phase == MachinePhase::Running => {}
                _ => return Ok(StatusCode::NO_CONTENT),
            }
            // The sender lives as long as the daemon.
            let _ = changes.changed().await;
        }
    };
    let late = || {
        let what =
            "is not removed yet, the daemon continues to try; if that does not help, `garret stop` stops the machine";
        Err(Refusal::new(Code::Unavailable, format!("{id} {what}")))
    };
    let patience = Duration::from_secs(daemon.config.machine.stop_deadline_s) + REMOVAL_SLACK;
    tokio::time::timeout(patience, gone).await.unwrap_or_else(|_| late())
}

#[utoipa::path(
    get,
    path = "/v1/environments/{id}/local-env", operation_id = "get_local_env",
    params(("id" = String, Path, description = "The environment's id.")),
    responses(
        (status = 200, description = "The names of the kept variables.", body = Vec<String>),
        (status = 404, body = ProblemDetails)
    )
)]
pub(super) async fn show_local_env(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(id): Path<String>,
) -> Result<Json<Vec<String>>, Refusal> {
    let (row, _) = find(&daemon, peer, &id).await?;
    Ok(Json(row.local_env.into_keys().collect()))
}

#[utoipa::path(
    delete,
    path = "/v1/environments/{id}/local-env", operation_id = "delete_local_env",
    params(("id" = String, Path, description = "The environment's id.")),
    responses(
        (status = 204, description = "The kept variables are removed. The container keeps its variables until it is rebuilt."),
        (status = 404, body = ProblemDetails)
    )
)]
pub(super) async fn clear_local_env(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    find(&daemon, peer, &id).await?;
    daemon
        .write(move |db| match environments::get(db, &id)? {
            Some(row) => environments::put(db, &EnvironmentRow { local_env: Default::default(), ..row }),
            None => Ok(()),
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(
    get,
    path = "/v1/environments/{id}/log", operation_id = "get_environment_log",
    params(("id" = String, Path, description = "The environment's id.")),
    responses((status = 200, description = "The last output of the container.", body = String))
)]
pub(super) async fn log(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(id): Path<String>,
) -> Result<String, Refusal> {
    let (row, machine) = find(&daemon, peer, &id).await?;
    require_running(&machine)?;
    let _needed = daemon.wake(&machine).await;
    Ok(daemon.agent(machine.id, proxy::DEADLINE).text(&format!("/v1/environments/{}/log", row.id)).await?)
}

#[utoipa::path(
    get,
    path = "/v1/environments/{id}/exec", operation_id = "exec_in_environment",
    params(("id" = String, Path, description = "The environment's id.")),
    responses(
        (status = 101, description = "A WebSocket to a process in the devcontainer."),
        (status = 404, body = ProblemDetails),
        (status = 503, description = "The machine is starting, or there are too many streams.", body = ProblemDetails)
    )
)]
pub(super) async fn exec(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let (row, machine) = find(&daemon, peer, &id).await?;
    proxy::exec(&daemon, peer, &machine, Some(row.id), request).await
}

/// The environment and its machine, if the peer may see them. Otherwise the result is the same as if it did not exist.
pub(super) async fn find(daemon: &Daemon, peer: Peer, id: &str) -> Result<(EnvironmentRow, MachineRow), Refusal> {
    let name = id.to_owned();
    let found = daemon.read(move |db| with_machine(db, &name)).await?;
    found.filter(|(row, machine)| peer.may(machine.owner) && !row.removed).ok_or_else(|| {
        Refusal::new(
            Code::NotFound,
            format!("there is no environment {id}: `garret up` makes one, `garret ls` lists them"),
        )
    })
}

fn with_machine(db: &ReadTx<'_>, id: &str) -> rusqlite::Result<Option<(EnvironmentRow, MachineRow)>> {
    let Some(row) = environments::get(db, id)? else { return Ok(None) };
    Ok(machines::get(db, row.machine)?.map(|machine| (row, machine)))
}

fn show_row(db: &ReadTx<'_>, machine: &MachineRow, row: EnvironmentRow) -> rusqlite::Result<Environment> {
    Ok(Environment {
        last_event: events::last(db, &Scope::Environment(machine.id, row.id.clone()))?,
        operation: operations::last(db, machine.id, Some(&row.id))?,
        id: row.id,
        machine: machine.id,
        developer: machine.developer.clone(),
        uid: machine.owner,
        workspace: row.workspace,
        desired: row.desired,
        generation: row.generation,
        observed_generation: row.observed_generation,
        status: row.status,
    })
}
