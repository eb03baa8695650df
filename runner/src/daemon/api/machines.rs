//! `/v1/machines`

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use garret_api::Problem;
use garret_api::agent::LOG_MAX;
use garret_api::runner::{Desired, Machine, MachinePhase, MachineRequest};
use hyper::StatusCode;
use rusqlite::Connection;

use super::body::Body;
use super::{Peer, Refusal, proxy};
use crate::accounts::Accounts;
use crate::config::Limits;
use crate::daemon::admission::{self, Host};
use crate::daemon::promises::{ask, promises};
use crate::daemon::state::{MachineRow, Scope, events, machines, now_ms};
use crate::daemon::{Daemon, requests, tail};

/// How long removing a machine may take until the answer says that it goes on.
const REMOVAL: Duration = Duration::from_secs(120);

#[utoipa::path(
    get,
    path = "/v1/machines",
    responses((status = 200, description = "The machines the caller may see.", body = Vec<Machine>))
)]
pub async fn list(State(daemon): State<Arc<Daemon>>, peer: Peer) -> Result<Json<Vec<Machine>>, Refusal> {
    let list = daemon
        .read(move |db| {
            machines::all(db)?.into_iter().filter(|row| peer.may(row.uid)).map(|row| show_row(db, row)).collect()
        })
        .await?;
    Ok(Json(list))
}

#[utoipa::path(
    get,
    path = "/v1/machines/{developer}",
    params(("developer" = String, Path, description = "The developer's name, or uid.")),
    responses((status = 200, description = "The machine.", body = Machine), (status = 404, body = Problem))
)]
pub async fn show(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(developer): Path<String>,
) -> Result<Json<Machine>, Refusal> {
    let machine = find(&daemon, peer, &developer).await?;
    Ok(Json(daemon.read(move |db| show_row(db, machine)).await?))
}

#[utoipa::path(
    put,
    path = "/v1/machines/{developer}",
    params(("developer" = String, Path, description = "The developer's name, or uid.")),
    request_body = MachineRequest,
    responses(
        (status = 200, description = "The machine, as it will be made.", body = Machine),
        (status = 400, body = Problem),
        (status = 403, body = Problem),
        (status = 409, description = "The host has not the memory, or the machine is being removed.", body = Problem),
    )
)]
pub async fn put(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(developer): Path<String>,
    Body(request): Body<MachineRequest>,
) -> Result<Json<Machine>, Refusal> {
    let accounts = Accounts::read();
    let (uid, gid) = match accounts.developer(peer.uid) == developer {
        true => (peer.uid, accounts.by_uid(peer.uid).map_or(peer.gid, |account| account.gid)),
        false if !peer.administrator => {
            return Err(Refusal::forbidden(format!("only {developer} or an administrator may do that")));
        }
        false => match accounts.by_developer(&developer) {
            Some(account) => (account.uid, account.gid),
            None => return Err(Refusal::not_found(format!("the host has no account {developer}"))),
        },
    };
    if request.weight.is_some() && !peer.administrator {
        return Err(Refusal::forbidden(
            "only an administrator may set a machine's weight: it is a share of what all have",
        ));
    }
    let machine = want(&daemon, uid, gid, request).await?;
    Ok(Json(daemon.read(move |db| show_row(db, machine)).await?))
}

#[utoipa::path(
    delete,
    path = "/v1/machines/{developer}",
    params(("developer" = String, Path, description = "The developer's name, or uid.")),
    responses((status = 204, description = "It and its data disk are gone."), (status = 404, body = Problem))
)]
pub async fn remove(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(developer): Path<String>,
) -> Result<StatusCode, Refusal> {
    let uid = find(&daemon, peer, &developer).await?.uid;
    let mut changes = daemon.changes.subscribe();
    daemon
        .write(move |db| match machines::get(db, uid)? {
            Some(machine) => machines::put(db, &MachineRow { removed: true, ..machine }),
            None => Ok(()),
        })
        .await?;
    daemon.poke(uid);
    let gone = async {
        while daemon.read(move |db| machines::get(db, uid)).await?.is_some() {
            // The sender lives as long as the daemon.
            let _ = changes.changed().await;
        }
        Ok(StatusCode::NO_CONTENT)
    };
    let late = || Err(Refusal::unavailable(format!("the machine of {developer} is still being removed")));
    tokio::time::timeout(REMOVAL, gone).await.unwrap_or_else(|_| late())
}

#[utoipa::path(
    get,
    path = "/v1/machines/{developer}/log",
    params(("developer" = String, Path, description = "The developer's name, or uid.")),
    responses((status = 200, description = "What the guest last printed on its console.", body = String))
)]
pub async fn log(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(developer): Path<String>,
) -> Result<String, Refusal> {
    let machine = find(&daemon, peer, &developer).await?;
    let path = daemon.paths(&machine.developer).console_log();
    let read = tokio::task::spawn_blocking(move || tail::read_tail(&path, LOG_MAX)).await;
    // Before the first start there is none.
    let bytes = read.unwrap_or_else(|error| Err(error.into())).unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[utoipa::path(
    get,
    path = "/v1/machines/{developer}/exec",
    params(("developer" = String, Path, description = "The developer's name, or uid.")),
    responses((status = 101, description = "A WebSocket: a process in the guest itself."), (status = 404, body = Problem))
)]
pub async fn exec(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(developer): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let machine = find(&daemon, peer, &developer).await?;
    require_running(&machine)?;
    tracing::info!(uid = peer.uid, machine = machine.developer, "exec in the guest");
    let needed = daemon.wake(&machine).await;
    let agent = daemon.agent(&machine.developer, proxy::DEADLINE);
    proxy::pass_on(&agent, "/v1/exec", request, needed).await
}

/// Nothing can be asked of a machine that does not run.
pub fn require_running(machine: &MachineRow) -> Result<(), Refusal> {
    match machine.phase {
        MachinePhase::Running => Ok(()),
        MachinePhase::Starting => Err(Refusal::unavailable("the machine is still starting: try again in a moment")),
        _ => Err(Refusal::conflict(format!("the machine does not run ({}): `garret start` starts it", machine.reason))),
    }
}

async fn find(daemon: &Daemon, peer: Peer, developer: &str) -> Result<MachineRow, Refusal> {
    let name = developer.to_owned();
    peer.admit(daemon.read(move |db| machines::by_developer(db, &name)).await?, developer)
}

/// Keeps what this request wants of the uid's machine, which is made if there is none, and has it carried out.
pub async fn want(daemon: &Daemon, uid: u32, gid: u32, request: MachineRequest) -> Result<MachineRow, Refusal> {
    let (host, slots) = (daemon.host(), daemon.network().slots());
    let limits = daemon.config.limits_of(&Accounts::read(), uid)?;
    let started = daemon.started();
    let fresh = fresh(daemon, uid, gid, &request, &limits);
    let overhead_mib = daemon.config.machine.memory_overhead_mib;
    let wanted = daemon
        .write(move |db| {
            let kept = machines::get(db, uid)?;
            let mut base = kept.clone().unwrap_or(fresh);
            if kept.is_none() {
                let Some(slot) = machines::free_slot(db, slots)? else {
                    return Ok(Err(Problem::new("conflict", format!("all {slots} places for machines are taken"))));
                };
                base.slot = slot;
            }
            let wanted = match requests::apply_machine(&base, &request) {
                Ok(wanted) => wanted,
                Err(problem) => return Ok(Err(problem)),
            };
            if asks_for_more(kept.as_ref(), &wanted) {
                if let Err(problem) = requests::check_limits(&wanted, &limits) {
                    return Ok(Err(problem));
                }
                let all = machines::all(db)?;
                let others = promises(all.iter().filter(|row| row.uid != uid), &started, overhead_mib);
                if let Err(refusal) = admission::admit(&host, others, ask(&wanted, started(&wanted), overhead_mib)) {
                    return Ok(Err(Problem::new("no-memory", refusal)));
                }
            }
            machines::put(db, &wanted)?;
            if wanted.phase != base.phase {
                machines::set_phase(db, uid, wanted.phase, "asked to start again")?;
            }
            Ok(Ok(wanted))
        })
        .await??;
    daemon.poke(uid);
    // A guarantee or a weight may be another now.
    daemon.memory.wake.notify_one();
    Ok(wanted)
}

/// Whether the host must have room for this: it is to run, and did not or with less.
fn asks_for_more(kept: Option<&MachineRow>, wanted: &MachineRow) -> bool {
    let before = kept.filter(|row| row.desired == Desired::Running);
    let figures = |row: &MachineRow| [row.memory_mib, row.guaranteed_mib, row.vcpus.into()];
    let (before, wants) = (before.map_or([0; 3], figures), figures(wanted));
    wanted.desired == Desired::Running && wants.iter().zip(before).any(|(wanted, before)| *wanted > before)
}

/// A machine nobody has asked for before.
fn fresh(daemon: &Daemon, uid: u32, gid: u32, request: &MachineRequest, limits: &Limits) -> MachineRow {
    let (defaults, host) = (&daemon.config.machine, &daemon.host());
    let memory_mib = limits.memory_mib.clip(defaults.memory_mib.unwrap_or_else(|| host.default_memory_mib()));
    let vcpus = limits.vcpus.clip(defaults.vcpus.unwrap_or_else(|| host.default_vcpus()).into());
    // What is guaranteed follows from what this machine will have, not from what one usually has.
    let will_have = request.memory_mib.unwrap_or(memory_mib);
    MachineRow {
        uid,
        gid,
        developer: Accounts::read().developer(uid),
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
    }
}

fn show_row(db: &Connection, row: MachineRow) -> rusqlite::Result<Machine> {
    Ok(Machine {
        last_event: events::last(db, &Scope { uid: Some(row.uid), environment: None })?,
        developer: row.developer,
        uid: row.uid,
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
