//! The loop against a test VMM on a real socket. There is no control group, so the arbiter sees no machine.

use std::fs;
use std::sync::Mutex;

use axum::routing::{get, post};
use axum::{Json, Router};
use garret_api::vmm::{MachineInfo, MachineState, MemoryInfo, MemoryTarget};
use hyper::StatusCode;
use tempfile::TempDir;
use tokio::net::UnixListener;

use super::*;
use crate::accounts::NameService;
use crate::daemon::state::tests::machine;
use crate::daemon::state::{Scope, VmmId};
use crate::daemon::testing::{self, id};

const NUMBER: u32 = 7;

struct Rig {
    _dir: TempDir,
    memory_loop: MemoryLoop,
    /// Requests that the VMM received.
    received: Arc<Mutex<Vec<String>>>,
}

impl Rig {
    /// A daemon whose machine was left paused by an earlier daemon.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (daemon, _) = testing::daemon(dir.path(), NameService::default());
        let row = MachineRow { phase: MachinePhase::Running, desired: Desired::Running, ..machine(NUMBER) };
        let received: Arc<Mutex<Vec<String>>> = Arc::default();
        let socket = daemon.paths(row.id).api_socket();
        fs::create_dir_all(socket.parent().unwrap()).unwrap();
        daemon.set_vmm(row.id, Some(std::process::id()));
        tokio::spawn(axum::serve(UnixListener::bind(socket).unwrap(), vmm(received.clone())).into_future());
        daemon
            .write(move |db| {
                machines::put(db, &row)?;
                machines::set_vmm(db, id(NUMBER), Some(&VmmId { pid: 1, started: 1, boot_id: "b".into() }))
            })
            .await
            .unwrap();
        Self { _dir: dir, memory_loop: MemoryLoop::new(daemon), received }
    }

    async fn until_received(&self, expected: &[&str]) {
        let reached = async {
            while *self.received.lock().unwrap() != expected {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let reached = timeout(Duration::from_secs(20), reached).await;
        assert!(reached.is_ok(), "{:?} instead of {expected:?}", self.received.lock().unwrap());
    }
}

/// What the VMM of a small machine reports.
pub(super) fn machine_info(state: MachineState) -> MachineInfo {
    MachineInfo { version: "1".into(), pid: 1, state, landlock: None }
}

fn vmm(received: Arc<Mutex<Vec<String>>>) -> Router {
    let info = machine_info(MachineState::Paused);
    let memory = MemoryInfo { boot_mib: 512, size_mib: 1024, driver: true, ..MemoryInfo::default() };
    let (resumed, limited) = (received.clone(), received);
    Router::new()
        .route("/v1/machine", get(async move || Json(info)))
        .route(
            "/v1/resume",
            post(async move || {
                resumed.lock().unwrap().push("resume".into());
                StatusCode::NO_CONTENT
            }),
        )
        .route(
            "/v1/memory",
            get(async move || Json(memory)).put(async move |Json(target): Json<MemoryTarget>| {
                limited.lock().unwrap().push(format!("plug {}", target.requested_mib));
                Json(memory)
            }),
        )
}

#[tokio::test]
async fn first_cycle_finds_what_an_earlier_daemon_left() {
    let mut rig = Rig::new().await;
    rig.memory_loop.run_cycle().await.unwrap();
    let memory = &rig.memory_loop.daemon.memory;
    assert_eq!(memory.pauses.state(id(NUMBER)), PauseState::Paused);
    let snapshot = memory.snapshot().await.unwrap();
    assert!(snapshot.host.total > 0 && snapshot.machines.is_empty(), "{snapshot:?}");
    assert_eq!(snapshot.broken_reports, [("dev7".to_string(), 0)].into());
    rig.memory_loop.daemon.write(|db| machines::set_vmm(db, id(NUMBER), None)).await.unwrap();
    rig.memory_loop.run_cycle().await.unwrap();
    assert!(rig.memory_loop.watched.is_empty());
}

#[tokio::test]
async fn orders_reach_the_vmm() {
    let mut rig = Rig::new().await;
    rig.memory_loop.run_cycle().await.unwrap();
    let watched = &rig.memory_loop.watched[&id(NUMBER)];
    watched.order(&Order::Limit { id: id(NUMBER), bytes: 769 << 20 });
    rig.until_received(&["plug 256"]).await;
    watched.order(&Order::Resume { id: id(NUMBER) });
    rig.until_received(&["plug 256", "resume"]).await;
    assert_eq!(rig.memory_loop.daemon.memory.pauses.state(id(NUMBER)), PauseState::Running);
}

#[tokio::test]
async fn a_notice_is_counted_and_kept_as_an_event() {
    let mut rig = Rig::new().await;
    let rows = rig.memory_loop.daemon.read(machines::all).await.unwrap();
    let notice = |number| Notice { id: id(number), means: Means::Swap, bytes: 5, reason: "short".into() };
    rig.memory_loop.report(&rows, vec![notice(NUMBER), notice(99)]).await.unwrap();
    assert_eq!(rig.memory_loop.squeezes, [(("dev7".to_string(), Means::Swap), 1)].into());
    let kept = rig.memory_loop.daemon.read(|db| events::after(db, 0, &Scope::All)).await.unwrap();
    let what: Vec<_> = kept.into_iter().map(|event| event.what).collect();
    assert_eq!(what, [EventKind::Squeeze { means: Means::Swap, bytes: 5, reason: "short".into() }]);
}

#[test]
fn a_machine_is_needed_unless_it_just_runs() {
    let running = MachineRow { phase: MachinePhase::Running, desired: Desired::Running, ..machine(NUMBER) };
    let starting = MachineRow { phase: MachinePhase::Starting, ..running.clone() };
    let stopping = MachineRow { desired: Desired::Stopped, ..running.clone() };
    let removed = MachineRow { removed: true, ..running.clone() };
    assert!(!is_needed(&running, &[id(8)].into()));
    assert!(is_needed(&running, &[id(NUMBER)].into()));
    assert!([starting, stopping, removed].iter().all(|row| is_needed(row, &[].into())));
}
