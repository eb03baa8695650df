//! `/v1/machines`

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use garret_api::agent::LOG_MAX;
use garret_api::runner::{Desired, Machine, MachinePhase, MachineRequest, OperationKind};
use garret_api::{Code, MachineId, Problem, ProblemDetails};
use hyper::StatusCode;
use rustix::rand::{GetRandomFlags, getrandom};

use super::identity::Owner;
use super::peer::Action;
use super::target::{Target, find, resolve};
use super::{Peer, Refusal, proxy};
use crate::config::Limits;
use crate::daemon::admission::{self, Host};
use crate::daemon::promises::{demand, promises};
use crate::daemon::state::{MachineRow, NewOperation, ReadTx, Scope, events, machines, now_ms, operations};
use crate::daemon::{Daemon, lost_disks, requests, tail};
use garret_http::Body;

/// How long the removal of a machine may take before the answer says that it continues.
const REMOVAL: Duration = Duration::from_secs(120);

#[utoipa::path(
    get,
    path = "/v1/machines", operation_id = "list_machines",
    responses((status = 200, description = "The machines that the caller may see.", body = Vec<Machine>))
)]
pub(super) async fn list(State(daemon): State<Arc<Daemon>>, peer: Peer) -> Result<Json<Vec<Machine>>, Refusal> {
    let asked = daemon.clone();
    let list = daemon
        .read(move |db| {
            let rows = machines::all(db)?.into_iter().filter(|row| peer.may(row.owner));
            rows.map(|row| show_row(&asked, db, row)).collect()
        })
        .await?;
    Ok(Json(list))
}

#[utoipa::path(
    get,
    path = "/v1/machines/{machine}", operation_id = "get_machine",
    params(("machine" = String, Path, description = "The machine's id, or its developer's account name or uid.")),
    responses((status = 200, description = "The machine.", body = Machine), (status = 404, body = ProblemDetails))
)]
pub(super) async fn show(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(name): Path<String>,
) -> Result<Json<Machine>, Refusal> {
    let machine = find(&daemon, peer, &name).await?;
    show_machine(&daemon, machine).await
}

#[utoipa::path(
    put,
    path = "/v1/machines/{machine}", operation_id = "put_machine",
    params(("machine" = String, Path, description = "The machine's id, or its developer's account name or uid.")),
    request_body = MachineRequest,
    responses(
        (status = 200, description = "The machine with its new settings; it may not be running yet.", body = Machine),
        (status = 400, body = ProblemDetails),
        (status = 403, body = ProblemDetails),
        (status = 409, description = "The host does not have enough memory, or the machine is being removed.", body = ProblemDetails),
    )
)]
pub(super) async fn put(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(name): Path<String>,
    Body(request): Body<MachineRequest>,
) -> Result<Json<Machine>, Refusal> {
    let target = match resolve(&daemon, peer, &name).await? {
        Some(target) if peer.may(target.owner()) => target,
        None if peer.allows(Action::Administer) => {
            return Err(Refusal::new(Code::NotFound, format!("the host has no account or machine {name}")));
        }
        _ => return Err(Refusal::new(Code::Forbidden, format!("only {name} or an administrator may do that"))),
    };
    let uid = target.owner();
    if (request.weight.is_some() || request.owner.is_some()) && !peer.allows(Action::Administer) {
        return Err(Refusal::new(Code::Forbidden, "only an administrator may set a machine's weight or its owner"));
    }
    let owner = Owner::find(&daemon, uid, peer.gid).await?;
    let there = daemon.read(move |db| target.row(db)).await?.is_some();
    if !there && uid != peer.uid && owner.account.is_none() {
        return Err(Refusal::new(Code::NotFound, format!("the host has no account {name}")));
    }
    if let Some(name) = &request.owner
        && owner.account.as_ref().is_none_or(|account| account.name != *name)
    {
        return Err(Refusal::new(Code::Invalid, format!("owner: uid {uid} is not the account {name}")));
    }
    let machine = request_machine(&daemon, target, &owner, peer.uid, request).await?;
    show_machine(&daemon, machine).await
}

#[utoipa::path(
    delete,
    path = "/v1/machines/{machine}", operation_id = "delete_machine",
    params(("machine" = String, Path, description = "The machine's id, or its developer's account name or uid.")),
    responses((status = 204, description = "The machine and its data disk are removed."), (status = 404, body = ProblemDetails))
)]
pub(super) async fn remove(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    let id = find(&daemon, peer, &name).await?.id;
    let mut changes = daemon.changes.subscribe();
    let kind = OperationKind::Remove;
    let allowed = requests::machine_operation_time(kind, &daemon.config.machine);
    let removal = NewOperation { kind, machine: id, environment: None, requested_by: peer.uid, allowed };
    daemon
        .write(move |db| match machines::get(db, id)? {
            Some(machine) if !machine.removed => {
                machines::put(db, &MachineRow { removed: true, ..machine })?;
                operations::begin(db, &removal)
            }
            _ => Ok(()),
        })
        .await?;
    daemon.poke(id);
    let gone = async {
        while daemon.read(move |db| machines::get(db, id)).await?.is_some() {
            // The sender lives as long as the daemon.
            let _ = changes.changed().await;
        }
        Ok(StatusCode::NO_CONTENT)
    };
    let late = || Err(Refusal::new(Code::Unavailable, format!("the machine of {name} is still being removed")));
    tokio::time::timeout(REMOVAL, gone).await.unwrap_or_else(|_| late())
}

#[utoipa::path(
    get,
    path = "/v1/machines/{machine}/log", operation_id = "get_machine_log",
    params(("machine" = String, Path, description = "The machine's id, or its developer's account name or uid.")),
    responses((status = 200, description = "The last output of the guest's console.", body = String))
)]
pub(super) async fn log(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(name): Path<String>,
) -> Result<String, Refusal> {
    let machine = find(&daemon, peer, &name).await?;
    let path = daemon.paths(machine.id).console_log();
    let read = tokio::task::spawn_blocking(move || tail::read_tail(&path, LOG_MAX)).await;
    // Before the first start there is no log.
    let bytes = read.unwrap_or_else(|error| Err(error.into())).unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[utoipa::path(
    get,
    path = "/v1/machines/{machine}/exec", operation_id = "exec_in_machine",
    params(("machine" = String, Path, description = "The machine's id, or its developer's account name or uid.")),
    responses(
        (status = 101, description = "A WebSocket to a process in the guest itself."),
        (status = 404, body = ProblemDetails),
        (status = 503, description = "The machine is starting, or there are too many streams.", body = ProblemDetails)
    )
)]
pub(super) async fn exec(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let machine = find(&daemon, peer, &name).await?;
    proxy::exec(&daemon, peer, &machine, None, request).await
}

/// Stores what this request wants of the owner's machine, creates the machine if needed, and starts the work.
pub(super) async fn request_machine(
    daemon: &Daemon,
    target: Target,
    owner: &Owner,
    requested_by: u32,
    request: MachineRequest,
) -> Result<MachineRow, Refusal> {
    let (uid, owner) = (owner.uid, owner.clone());
    let (host, slots) = (daemon.host(), daemon.network().slots());
    // A developer who may no longer have a machine may still stop an existing one.
    let limits = daemon.limits(uid).await;
    let started = daemon.started();
    // A stop reaches a machine also if it cannot be written.
    let known = daemon.read(move |db| target.row(db)).await?;
    let new_machine = match (target, &limits) {
        (Target::Machine(id, _), _) => Err(Problem::new(Code::NotFound, format!("the machine {id} was removed"))),
        (Target::OfOwner(_), Err(problem)) => Err(problem.clone()),
        (Target::OfOwner(_), Ok(limits)) => {
            let id = match &known {
                Some(known) => Ok(known.id),
                None => id_for(daemon, &owner).await,
            };
            id.map(|id| new_machine(daemon, id, &owner, &request, limits))
        }
    };
    let settings = daemon.config.machine.clone();
    let overhead_mib = settings.memory_overhead_mib;
    let desired = request.desired;
    let written = daemon
        .write(move |db| {
            let kept = target.row(db)?;
            let mut base = match kept.clone().map_or(new_machine, Ok) {
                Ok(base) => base,
                Err(problem) => return Ok(Err(problem)),
            };
            if kept.is_none() {
                let Some(slot) = machines::free_slot(db, slots)? else {
                    return Ok(Err(Problem::new(Code::Conflict, format!("all {slots} places for machines are taken"))));
                };
                base.slot = slot;
            }
            if request.owner.is_some() {
                base = owner.of(base);
            }
            let wanted = match requests::apply_machine(&base, &request) {
                Ok(wanted) => wanted,
                Err(problem) => return Ok(Err(problem)),
            };
            if asks_for_more(kept.as_ref(), &wanted) {
                if let Err(problem) = limits.and_then(|limits| requests::check_limits(&wanted, &limits)) {
                    return Ok(Err(problem));
                }
                let all = machines::all(db)?;
                let others = promises(all.iter().filter(|row| row.id != wanted.id), &started, overhead_mib);
                if let Err(refusal) = admission::admit(&host, others, demand(&wanted, started(&wanted), overhead_mib)) {
                    return Ok(Err(Problem::new(Code::NoMemory, refusal)));
                }
            }
            machines::put(db, &wanted)?;
            if let Some(kind) = requests::machine_operation(kept.as_ref(), &wanted) {
                let allowed = requests::machine_operation_time(kind, &settings);
                operations::begin(
                    db,
                    &NewOperation { kind, machine: wanted.id, environment: None, requested_by, allowed },
                )?;
            }
            if wanted.phase != base.phase {
                machines::set_phase(db, wanted.id, wanted.phase, "asked to start again")?;
            }
            Ok(Ok(wanted))
        })
        .await;
    if let (Err(error), Some(Desired::Stopped), Some(known)) = (&written, desired, known) {
        daemon.stop_unwritten(known.id);
        tracing::error!("a stop could not be written: {error}");
        let said = format!(
            "the machine stops, but may start again with the next daemon: its state cannot be written: {error}"
        );
        return Err(Problem::new(Code::Internal, said).into());
    }
    let wanted = written??;
    if desired.is_some() {
        daemon.desired_is_written(wanted.id);
    }
    daemon.poke(wanted.id);
    // A guarantee or a weight may have changed.
    daemon.memory.wake.notify_one();
    Ok(wanted)
}

/// Whether the host must have room for this: the machine is to run, and it did not run before or ran with less.
fn asks_for_more(kept: Option<&MachineRow>, wanted: &MachineRow) -> bool {
    let before = kept.filter(|row| row.desired == Desired::Running);
    let figures = |row: &MachineRow| [row.memory_mib, row.guaranteed_mib, row.vcpus.into()];
    let (before, wants) = (before.map_or([0; 3], figures), figures(wanted));
    wanted.desired == Desired::Running && wants.iter().zip(before).any(|(wanted, before)| *wanted > before)
}

/// The id of the owner's machine if the state was lost and its disk is still there; otherwise a new one.
async fn id_for(daemon: &Daemon, owner: &Owner) -> Result<MachineId, Problem> {
    let known = daemon.read(machines::all).await?.into_iter().map(|row| row.id).collect();
    let folder = daemon.config.state.join("machines");
    let (uid, account) = (owner.uid, owner.account.as_ref().map(|account| account.name.clone()));
    let lost = move || lost_disks::find(&folder, &known, uid, account.as_deref());
    match tokio::task::spawn_blocking(lost).await {
        Ok(Some(id)) => {
            tracing::info!(machine = %id, uid, "the new machine gets a disk that was left");
            Ok(id)
        }
        _ => new_id(),
    }
}

/// The id of a new machine.
fn new_id() -> Result<MachineId, Problem> {
    let mut random = [0; MachineId::RANDOM_BYTES];
    getrandom(&mut random, GetRandomFlags::empty())
        .map_err(|error| Problem::new(Code::Internal, format!("the kernel has no random numbers: {error}")))?;
    Ok(MachineId::from_random(random))
}

/// A machine that did not exist before.
fn new_machine(daemon: &Daemon, id: MachineId, owner: &Owner, request: &MachineRequest, limits: &Limits) -> MachineRow {
    let (defaults, host) = (&daemon.config.machine, &daemon.host());
    let memory_mib = limits.memory_mib.clip(defaults.memory_mib.unwrap_or_else(|| host.default_memory_mib()));
    let vcpus = limits.vcpus.clip(defaults.vcpus.unwrap_or_else(|| host.default_vcpus()).into());
    // The guarantee depends on the memory that this machine will have, not on the default.
    let will_have = request.memory_mib.unwrap_or(memory_mib);
    owner.of(MachineRow {
        id,
        owner: owner.uid,
        gid: owner.gid,
        developer: String::new(),
        account: None,
        home: None,
        slot: 0,
        desired: Desired::Stopped,
        removed: false,
        vcpus: u8::try_from(vcpus).unwrap_or(u8::MAX),
        memory_mib,
        guaranteed_mib: limits
            .guaranteed_mib
            .clip(defaults.guaranteed_mib.unwrap_or_else(|| Host::default_guaranteed_mib(will_have))),
        weight: requests::WEIGHT,
        phase: MachinePhase::Stopped,
        reason: "never started".into(),
        since: now_ms() / 1000,
        vmm: None,
    })
}

async fn show_machine(daemon: &Arc<Daemon>, row: MachineRow) -> Result<Json<Machine>, Refusal> {
    let asked = daemon.clone();
    Ok(Json(daemon.read(move |db| show_row(&asked, db, row)).await?))
}

fn show_row(daemon: &Daemon, db: &ReadTx<'_>, row: MachineRow) -> rusqlite::Result<Machine> {
    Ok(Machine {
        landlock: daemon.landlock(row.id),
        last_event: events::last(db, &Scope::Machine(row.id))?,
        operation: operations::last(db, row.id, None)?,
        id: row.id,
        developer: row.developer,
        uid: row.owner,
        desired: row.desired,
        phase: row.phase,
        reason: row.reason,
        vcpus: row.vcpus,
        memory_mib: row.memory_mib,
        guaranteed_mib: row.guaranteed_mib,
        weight: row.weight,
        vmm_pid: row.vmm.map(|vmm| vmm.pid),
        since: row.since,
    })
}
