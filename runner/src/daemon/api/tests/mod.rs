//! The real router on a real Unix socket with a real state, but without machine drivers.

mod accounts;
mod connections;
mod operations;
mod streams;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use garret_api::MachineId;
use garret_api::agent::{EnvironmentPhase, Progress};
use garret_api::client::{Client, Error, Lines};
use garret_api::runner::{
    Desired, Environment, EnvironmentRequest, Event, EventKind, HostInfo, HostMemory, Machine, MachineMemory,
    MachinePhase, MachineRequest, Top,
};
use hyper::Method;
use rustix::process::{Gid, Uid};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use super::*;
use crate::accounts::NameService;
use crate::accounts::tests::{name_service, name_service_with};
use crate::daemon::lost_disks;
use crate::daemon::memory::Snapshot;
use crate::daemon::state::tests::{machine, refuse_writes};
use crate::daemon::state::{EnvironmentRow, MachineRow, WriteTx, environments as table, machines as machine_table};
use crate::daemon::testing;
use crate::environment_id::environment_id;

const ALICE: u32 = 54_321;
const BOB: u32 = 54_322;
/// A system account.
const DAEMON: u32 = 33;

struct Server {
    dir: TempDir,
    daemon: Arc<Daemon>,
    poked: mpsc::UnboundedReceiver<MachineId>,
    /// Keeps the name service's folder until the test ends.
    _names: Option<TempDir>,
}

impl Server {
    async fn start() -> Self {
        let names = tempfile::tempdir().unwrap();
        let service = name_service_with(names.path(), &[ALICE, BOB, DAEMON]);
        Self { _names: Some(names), ..Self::with_names(service).await }
    }

    async fn with_names(names: NameService) -> Self {
        Self::with_times(names, HEAD_TIME).await
    }

    async fn with_times(names: NameService, head_time: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let (daemon, poked) = testing::daemon(dir.path(), names);
        let listener = UnixListener::bind(dir.path().join("garret.sock")).unwrap();
        fs::set_permissions(dir.path().join("garret.sock"), fs::Permissions::from_mode(0o666)).unwrap();
        tokio::spawn(serve(listener, daemon.clone(), head_time));
        Self { dir, daemon, poked, _names: None }
    }

    fn client(&self) -> Client {
        Client::unix(self.dir.path().join("garret.sock"))
    }

    /// A folder that belongs to this uid.
    fn workspace(&self, uid: u32, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(uid), Some(uid)).unwrap();
        path
    }

    /// One call as another user.
    async fn call(&self, uid: u32, method: Method, path: &str, body: Option<Value>) -> Result<Value, Error> {
        let (client, path) = (self.client(), path.to_owned());
        as_user(uid, move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                match method {
                    Method::GET => client.get(&path).await,
                    Method::PUT => client.put(&path, &body).await,
                    other => client.send(other, &path, body.as_ref()).await.map(|()| Value::Null),
                }
            })
        })
        .await
    }

    async fn up(&self, uid: u32, workspace: &Path) -> Result<Environment, Error> {
        let id = environment_id(uid, workspace);
        let body = json!({"workspace": workspace, "desired": "running"});
        let answer = self.call(uid, Method::PUT, &format!("/v1/environments/{id}"), Some(body)).await?;
        Ok(serde_json::from_value(answer).unwrap())
    }
}

/// Runs `job` as another user, on a thread: in Linux, rights, and with them a socket's credentials, belong to a thread.
async fn as_user<T: Send + 'static>(uid: u32, job: impl FnOnce() -> T + Send + 'static) -> T {
    let user = thread::spawn(move || {
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
        rustix::thread::set_thread_groups(&[]).unwrap();
        rustix::thread::set_thread_res_gid(group, group, group).unwrap();
        rustix::thread::set_thread_res_uid(user, user, user).unwrap();
        job()
    });
    tokio::task::spawn_blocking(move || user.join().unwrap()).await.unwrap()
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Error>) -> (u16, String) {
    let error = answer.unwrap_err();
    let status = error.status().unwrap_or_else(|| panic!("no status: {error}"));
    (status, error.into_problem().detail)
}

#[tokio::test]
async fn the_host_tells_its_figures() {
    let mut server = Server::start().await;
    let request = MachineRequest { desired: Some(Desired::Running), memory_mib: Some(1000), ..Default::default() };
    let machine: Machine = server.client().put("/v1/machines/root", &request).await.unwrap();
    assert_eq!((machine.uid, machine.memory_mib, machine.vcpus), (0, 1000, 2));
    assert_eq!(server.poked.recv().await, Some(machine.id));
    let host: HostInfo = server.client().get("/v1/host").await.unwrap();
    assert_eq!((host.cpus, host.memory_mib, host.promised_mib), (2, 4000, 1256));
}

#[tokio::test]
async fn a_put_of_the_same_changes_nothing() {
    let server = Server::start().await;
    let workspace = server.workspace(ALICE, "w");
    let first = server.up(ALICE, &workspace).await.unwrap();
    assert_eq!((first.generation, first.observed_generation), (1, 0));
    assert_eq!(first.status.phase, EnvironmentPhase::Starting);
    assert_eq!(server.up(ALICE, &workspace).await.unwrap(), first);
    let machines: Vec<Machine> = server.client().get("/v1/machines").await.unwrap();
    assert_eq!(machines.len(), 1);
    assert_eq!(machines[0].desired, Desired::Running);
}

#[tokio::test]
async fn unknown_fields_and_broken_bodies_are_refused_in_one_line() {
    let server = Server::start().await;
    for (path, body, said) in [
        ("/v1/machines/root", json!({"vcpu": 2}), "unknown field `vcpu`"),
        ("/v1/machines/root", json!({"vcpus": 99}), "vcpus must be 1 to 32"),
        ("/v1/machines/root", json!({"guaranteed_mib": 100}), "guaranteed_mib must be 256 to"),
        ("/v1/machines/root", json!({"guaranteed_mib": -1}), "invalid value"),
        ("/v1/machines/root", json!({"weight": 0}), "weight must be 1 to 10000"),
        ("/v1/machines/root", json!({"desired": "happy"}), "unknown variant `happy`"),
        ("/v1/environments/x", json!({"workspace": "/w"}), "missing field `desired`"),
        ("/v1/environments/x", json!({"workspace": "/w", "desired": "running", "x": 1}), "unknown field `x`"),
        (
            "/v1/environments/x",
            json!({"workspace": "/w", "desired": "running", "config": "../x"}),
            "inside the workspace",
        ),
        ("/v1/environments/x", json!({"workspace": "/w", "desired": "running"}), "has the id w-"),
    ] {
        let (status, message) = refused(server.client().put::<Value>(path, &body).await);
        assert_eq!(status, 400, "{path} {body}: {message}");
        assert!(message.contains(said) && !message.contains('\n'), "{path} {body}: {message}");
    }
    let (status, message) = refused(server.client().get::<Value>("/v1/events?folow=true").await);
    assert!(status == 400 && message.contains("unknown field `folow`"), "{message}");
}

#[tokio::test]
async fn unknown_paths_and_ids_are_not_found() {
    let server = Server::start().await;
    for path in ["/v1/machines/root", "/v1/environments/x", "/v1/environments/x/events", "/v1/nothing", "/"] {
        assert_eq!(refused(server.client().get::<Value>(path).await).0, 404, "{path}");
    }
    assert_eq!(refused(server.client().post("/v1/host").await).0, 405);
    assert_eq!(refused(server.client().exec_stream("/v1/environments/x/exec").await).0, 404);
}

#[tokio::test]
async fn another_user_sees_and_changes_nothing_of_mine() {
    let server = Server::start().await;
    let workspace = server.workspace(ALICE, "secret");
    let mine = server.up(ALICE, &workspace).await.unwrap();
    let environment = format!("/v1/environments/{}", mine.id);
    let machine = format!("/v1/machines/{ALICE}");
    let stop = Some(json!({"desired": "stopped"}));
    let stop_environment = Some(json!({"workspace": workspace, "desired": "stopped"}));
    for (method, path, body, status) in [
        (Method::GET, environment.clone(), None, 404),
        (Method::GET, format!("{environment}/log"), None, 404),
        (Method::GET, format!("{environment}/events"), None, 404),
        (Method::GET, format!("{environment}/exec"), None, 404),
        (Method::DELETE, environment.clone(), None, 404),
        (Method::PUT, environment.clone(), stop_environment, 400),
        (Method::GET, machine.clone(), None, 404),
        (Method::GET, format!("{machine}/log"), None, 404),
        (Method::GET, format!("{machine}/exec"), None, 404),
        (Method::DELETE, machine.clone(), None, 404),
        (Method::PUT, machine.clone(), stop, 403),
    ] {
        let (got, message) = refused(server.call(BOB, method.clone(), &path, body).await);
        assert_eq!(got, status, "{method} {path}: {message}");
        assert!(!message.contains("secret") || method == Method::PUT || path.contains(&mine.id), "{message}");
    }
    for path in ["/v1/machines", "/v1/environments"] {
        assert_eq!(server.call(BOB, Method::GET, path, None).await.unwrap(), json!([]), "{path}");
        assert_eq!(server.call(ALICE, Method::GET, path, None).await.unwrap().as_array().unwrap().len(), 1);
        assert_eq!(server.call(0, Method::GET, path, None).await.unwrap().as_array().unwrap().len(), 1);
    }
    let still: Machine = server.client().get(&machine).await.unwrap();
    assert_eq!(still.desired, Desired::Running);
}

#[tokio::test]
async fn a_workspace_is_checked_with_the_callers_rights() {
    let server = Server::start().await;
    let theirs = server.workspace(BOB, "theirs");
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o755)).unwrap();
    let file = server.dir.path().join("file");
    fs::write(&file, "").unwrap();
    for (path, status, said) in [
        (theirs.clone(), 403, "theirs: you may not read and write it"),
        (server.dir.path().join("missing"), 400, "missing: no such folder"),
        (file, 400, "file: not a folder"),
        (PathBuf::from("some/where"), 400, "some/where: not an absolute path"),
    ] {
        let (got, message) = refused(server.up(ALICE, &path).await);
        assert!(got == status && message.ends_with(said), "{got} {message}");
    }
    assert_eq!(server.call(ALICE, Method::GET, "/v1/machines", None).await.unwrap(), json!([]));
    server.up(BOB, &theirs).await.unwrap();
}

#[tokio::test]
async fn memory_beyond_the_hosts_is_refused_with_numbers() {
    let server = Server::start().await;
    let put = async |uid: u32, memory_mib: u32, guaranteed_mib: u32| {
        let body = json!({"desired": "running", "memory_mib": memory_mib, "guaranteed_mib": guaranteed_mib});
        server.call(uid, Method::PUT, &format!("/v1/machines/{uid}"), Some(body)).await
    };
    put(ALICE, 2000, 1500).await.unwrap();
    let (status, message) = refused(put(BOB, 1800, 256).await);
    assert_eq!(status, 409);
    for number in ["1800 MiB", "needs 256 MiB", "2256 of", "4000 MiB"] {
        assert!(message.contains(number), "{message}");
    }
    put(BOB, 1000, 256).await.unwrap();
    put(ALICE, 2000, 1500).await.unwrap();
    put(ALICE, 1999, 1999).await.unwrap();
}

#[tokio::test]
async fn a_guarantee_follows_the_memory_and_must_fit() {
    let server = Server::start().await;
    let put = async |uid: u32, body: Value| {
        let answer = server.call(uid, Method::PUT, &format!("/v1/machines/{uid}"), Some(body)).await?;
        Ok(serde_json::from_value::<Machine>(answer).unwrap())
    };
    let figures = |machine: &Machine| (machine.memory_mib, machine.guaranteed_mib, machine.weight);
    let alice = put(ALICE, json!({"desired": "running", "memory_mib": 1600})).await.unwrap();
    assert_eq!(figures(&alice), (1600, 400, 100));
    let alice = put(ALICE, json!({"guaranteed_mib": 1600})).await.unwrap();
    assert_eq!(figures(&alice), (1600, 1600, 100));
    put(BOB, json!({"desired": "running", "memory_mib": 1800, "guaranteed_mib": 256})).await.unwrap();
    let (status, message) = refused(put(BOB, json!({"guaranteed_mib": 1900})).await);
    assert!(status == 400 && message.contains("which is 1800: not 1900"), "{message}");
    let alice = put(ALICE, json!({"memory_mib": 700})).await.unwrap();
    assert_eq!(figures(&alice), (700, 700, 100));
}

#[tokio::test]
async fn only_an_administrator_sets_a_weight() {
    let server = Server::start().await;
    let path = format!("/v1/machines/{ALICE}");
    let own = server.call(ALICE, Method::PUT, &path, Some(json!({"weight": 10_000}))).await;
    let (status, message) = refused(own);
    assert!(status == 403 && message.contains("only an administrator may set a machine's weight"), "{message}");
    let request = MachineRequest { weight: Some(300), ..Default::default() };
    let machine: Machine = server.client().put("/v1/machines/root", &request).await.unwrap();
    assert_eq!(machine.weight, 300);
}

#[tokio::test]
async fn top_shows_ones_own_and_metrics_are_an_administrators() {
    let server = Server::start().await;
    let machine = |uid: u32| (uid, MachineMemory { developer: uid.to_string(), ..MachineMemory::default() });
    let host = HostMemory { total: 1 << 30, ..HostMemory::default() };
    server.daemon.memory.publish(Snapshot {
        host: host.clone(),
        machines: vec![machine(ALICE), machine(BOB)],
        ..Snapshot::default()
    });
    for (uid, seen) in [(ALICE, vec![ALICE]), (BOB, vec![BOB]), (0, vec![ALICE, BOB])] {
        let answer = server.call(uid, Method::GET, "/v1/top", None).await.unwrap();
        let top: Top = serde_json::from_value(answer).unwrap();
        let names: Vec<u32> = top.machines.iter().map(|machine| machine.developer.parse().unwrap()).collect();
        assert_eq!((top.host, names), (host.clone(), seen));
    }
    let (status, message) = refused(server.call(ALICE, Method::GET, "/metrics", None).await);
    assert!(status == 403 && message.contains("the group garret"), "{message}");
    let text = server.client().text("/metrics").await.unwrap();
    assert!(text.contains(&format!("garret_machine_target_bytes{{developer=\"{BOB}\"}} 0\n")), "{text}");
    assert!(text.contains("# TYPE garret_vmm_up gauge\n"), "{text}");
}

#[tokio::test]
async fn vmm_metrics_need_a_vmm_and_the_right_to_see_it() {
    let server = Server::start().await;
    let body = json!({"desired": "running", "memory_mib": 512});
    server.call(ALICE, Method::PUT, &format!("/v1/machines/{ALICE}"), Some(body)).await.unwrap();
    let path = format!("/v1/machines/{ALICE}/metrics");
    assert_eq!(refused(server.call(BOB, Method::GET, &path, None).await).0, 404);
    let (status, message) = refused(server.call(ALICE, Method::GET, &path, None).await);
    assert!(status == 409 && message == "the machine does not run (never started)", "{message}");
}

#[tokio::test]
async fn an_exec_needs_a_running_machine() {
    let server = Server::start().await;
    let workspace = server.workspace(0, "w");
    let environment = server.up(0, &workspace).await.unwrap();
    for path in [format!("/v1/environments/{}/exec", environment.id), "/v1/machines/root/exec".into()] {
        let (status, message) = refused(server.client().exec_stream(&path).await);
        assert_eq!(status, 409, "{message}");
        assert!(message.contains("`garret start` starts it"), "{message}");
    }
}

#[tokio::test]
async fn events_are_followed_as_they_happen() {
    let server = Server::start().await;
    let workspace = server.workspace(0, "w");
    let environment = server.up(0, &workspace).await.unwrap();
    let path = format!("/v1/environments/{}/events?follow=true", environment.id);
    let mut lines: Lines<Event> = server.client().lines::<Event, ()>(Method::GET, &path, None).await.unwrap();
    for step in ["pull image", "create container"] {
        let id = environment.id.clone();
        let progress = Progress::Started { step: step.into() };
        let expected = progress.clone();
        server.daemon.write(move |db| table::add_progress(db, &table::get(db, &id)?.unwrap(), progress)).await.unwrap();
        let event = lines.next().await.unwrap().unwrap();
        assert_eq!(event.what, EventKind::Environment { generation: 1, progress: expected });
    }
    let all = format!("/v1/environments/{}/events", environment.id);
    let mut kept: Lines<Event> = server.client().lines::<Event, ()>(Method::GET, &all, None).await.unwrap();
    let mut count = 0;
    while kept.next().await.unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 2);
}

#[tokio::test]
async fn removal_waits_for_the_driver_unless_the_machine_is_stopped() {
    let server = Server::start().await;
    let workspace = server.workspace(0, "w");
    let environment = server.up(0, &workspace).await.unwrap();
    let path = format!("/v1/environments/{}", environment.id);
    server.client().delete(&path).await.unwrap();
    assert_eq!(refused(server.client().get::<Environment>(&path).await).0, 404);
    // The removal is only recorded yet: a new request brings it back, and it is built again.
    let again = server.up(0, &workspace).await.unwrap();
    assert_eq!(again.generation, 2);

    let daemon = server.daemon.clone();
    let (client, removal) = (server.client(), "/v1/machines/root");
    let removing = tokio::spawn(async move { client.delete(removal).await });
    let mut changes = daemon.changes.subscribe();
    while !daemon.read(|db| Ok(machine_table::of_owner(db, 0)?.unwrap().removed)).await.unwrap() {
        changes.changed().await.unwrap();
    }
    let refusal = refused(server.up(0, &workspace).await);
    assert!(refusal.0 == 409 && refusal.1.contains("is being removed"), "{refusal:?}");
    daemon.write(move |db| machine_table::forget(db, again.machine)).await.unwrap();
    removing.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_failed_machine_is_retried_on_request() {
    let server = Server::start().await;
    let workspace = server.workspace(0, "w");
    let id = server.up(0, &workspace).await.unwrap().machine;
    server.daemon.write(move |db| machine_table::set_phase(db, id, MachinePhase::Failed, "killed")).await.unwrap();
    let unchanged = MachineRequest::default();
    let machine: Machine = server.client().put("/v1/machines/root", &unchanged).await.unwrap();
    assert_eq!((machine.phase, machine.reason.as_str()), (MachinePhase::Failed, "killed"));
    let start = MachineRequest { desired: Some(Desired::Running), ..unchanged };
    let machine: Machine = server.client().put("/v1/machines/root", &start).await.unwrap();
    assert_eq!(machine.phase, MachinePhase::Stopped);
    let shown: Machine = server.client().get("/v1/machines/root").await.unwrap();
    assert_eq!((shown.phase, shown.reason.as_str()), (MachinePhase::Stopped, "asked to start again"));
}

#[tokio::test]
async fn only_an_administrator_changes_what_belongs_to_others() {
    let server = Server::start().await;
    let workspace = server.workspace(ALICE, "w");
    let environment = server.up(ALICE, &workspace).await.unwrap();
    let path = format!("/v1/environments/{}", environment.id);
    let request = EnvironmentRequest {
        workspace: workspace.clone(),
        desired: Desired::Stopped,
        config: None,
        local_env: Default::default(),
        rebuild: None,
    };
    let stopped: Environment = server.client().put(&path, &request).await.unwrap();
    assert_eq!((stopped.desired, stopped.developer), (Desired::Stopped, ALICE.to_string()));
    assert_eq!((stopped.uid, stopped.machine), (ALICE, environment.machine));
    assert_eq!(refused(server.client().put::<Value>("/v1/machines/no-such-account", &json!({})).await).0, 404);
}

#[tokio::test]
async fn an_id_that_another_developer_has_is_refused() {
    let server = Server::start().await;
    let workspace = server.workspace(ALICE, "w");
    let theirs = server.up(BOB, &server.workspace(BOB, "theirs")).await.unwrap();
    // As if alice had found a path whose id is that of bob's environment.
    let id = environment_id(ALICE, &workspace);
    let row = server.daemon.read(move |db| Ok(table::get(db, &theirs.id)?.unwrap())).await.unwrap();
    let collides = EnvironmentRow { id: id.clone(), ..row };
    let kept = collides.clone();
    server.daemon.write(move |db| table::put(db, &collides)).await.unwrap();
    for desired in ["running", "stopped"] {
        let body = json!({"workspace": workspace, "desired": desired, "rebuild": "x", "local_env": {"HOME": "/evil"}});
        let answer = server.call(ALICE, Method::PUT, &format!("/v1/environments/{id}"), Some(body)).await;
        let (status, message) = refused(answer);
        assert!(status == 409 && message.contains("is in use"), "{status} {message}");
    }
    let row = server.daemon.read(move |db| Ok(table::get(db, &id)?.unwrap())).await.unwrap();
    assert_eq!(row, kept);
}

#[tokio::test]
async fn every_run_ends_with_one_event_whatever_ends_it() {
    let server = Server::start().await;
    let workspace = server.workspace(ALICE, "w");
    let environment = server.up(ALICE, &workspace).await.unwrap();
    let path = format!("/v1/environments/{}", environment.id);
    let put = async |uid: u32, body: Value| {
        let answer = server.call(uid, Method::PUT, &path, Some(body)).await.unwrap();
        serde_json::from_value::<Environment>(answer).unwrap()
    };
    let events = format!("{path}/events?follow=true");
    let mut lines: Lines<Event> = server.client().lines::<Event, ()>(Method::GET, &events, None).await.unwrap();
    put(ALICE, json!({"workspace": workspace, "desired": "running", "rebuild": "a"})).await;
    put(ALICE, json!({"workspace": workspace, "desired": "running", "rebuild": "a"})).await;
    put(0, json!({"workspace": workspace, "desired": "stopped"})).await;
    put(ALICE, json!({"workspace": workspace, "desired": "running", "config": "b.json"})).await;
    server.call(ALICE, Method::DELETE, &path, None).await.unwrap();
    let mut cancelled = Vec::new();
    // The answer ends with the environment.
    while let Some(event) = lines.next().await.unwrap() {
        let EventKind::Environment { generation, progress: Progress::Failed { problem, .. } } = event.what else {
            panic!("{event:?}");
        };
        assert_eq!(problem.code, Code::Cancelled);
        cancelled.push(generation);
    }
    assert_eq!(cancelled, [1, 2, 3, 4]);
}

#[tokio::test]
async fn an_environment_made_again_has_no_events_of_the_former() {
    let server = Server::start().await;
    let workspace = server.workspace(0, "w");
    let former = server.up(0, &workspace).await.unwrap();
    let path = format!("/v1/environments/{}", former.id);
    let id = former.id.clone();
    let end = move |db: &WriteTx<'_>| {
        let mut row = table::get(db, &id)?.unwrap();
        row.status.phase = EnvironmentPhase::Ready;
        let progress = Progress::Ready { environment: row.status.clone() };
        table::end_run(db, &row, &EventKind::Environment { generation: row.generation, progress })
    };
    assert!(server.daemon.write(end).await.unwrap());
    server.client().delete(&path).await.unwrap();
    let id = former.id.clone();
    server.daemon.write(move |db| table::forget(db, &table::get(db, &id)?.unwrap())).await.unwrap();

    let again = server.up(0, &workspace).await.unwrap();
    assert_eq!((&again.id, again.generation), (&former.id, former.generation));
    let events = format!("{path}/events?follow=true");
    let mut lines: Lines<Event> = server.client().lines::<Event, ()>(Method::GET, &events, None).await.unwrap();
    let progress = Progress::Started { step: "pull image".into() };
    let step = progress.clone();
    server.daemon.write(move |db| table::add_progress(db, &table::get(db, &again.id)?.unwrap(), step)).await.unwrap();
    let first = lines.next().await.unwrap().unwrap();
    assert_eq!(first.what, EventKind::Environment { generation: 1, progress });
}

#[tokio::test]
async fn events_of_a_machine_end_with_it() {
    let server = Server::start().await;
    let start = json!({"desired": "running"});
    let id = server.client().put::<Machine>("/v1/machines/root", &start).await.unwrap().id;
    let path = "/v1/machines/root/events?follow=true";
    let mut lines: Lines<Event> = server.client().lines::<Event, ()>(Method::GET, path, None).await.unwrap();
    server.daemon.write(move |db| machine_table::set_phase(db, id, MachinePhase::Starting, "x")).await.unwrap();
    let event = lines.next().await.unwrap().unwrap();
    assert!(event.machine == id && matches!(event.what, EventKind::Machine { .. }), "{event:?}");
    server.daemon.write(move |db| machine_table::forget(db, id)).await.unwrap();
    assert_eq!(lines.next().await.unwrap(), None);
    assert_eq!(refused(server.client().get::<Value>(path).await).0, 404);
}

#[tokio::test]
async fn a_stop_that_cannot_be_written_stops_all_the_same() {
    let mut server = Server::start().await;
    let start = json!({"desired": "running"});
    let id = server.client().put::<Machine>("/v1/machines/root", &start).await.unwrap().id;
    assert_eq!(server.poked.recv().await, Some(id));
    let full = |full: bool| server.daemon.write(move |db| refuse_writes(db, full));
    full(true).await.unwrap();
    let stop = json!({"desired": "stopped"});
    let (status, message) = refused(server.client().put::<Value>("/v1/machines/root", &stop).await);
    assert!(status == 500 && message.starts_with("the machine stops, but"), "{message}");
    assert_eq!(server.poked.recv().await, Some(id), "its driver is poked");
    assert!(server.daemon.must_stop(id));
    full(false).await.unwrap();
    server.client().put::<Machine>("/v1/machines/root", &start).await.unwrap();
    assert!(!server.daemon.must_stop(id));
}

#[tokio::test]
async fn a_machine_is_found_by_its_id_and_each_has_its_own() {
    let server = Server::start().await;
    let name = format!("/v1/machines/{ALICE}");
    let start = Some(json!({"desired": "running", "memory_mib": 256}));
    let made = server.call(ALICE, Method::PUT, &name, start.clone()).await.unwrap();
    let id = made["id"].as_str().unwrap();
    assert!(id.starts_with('m') && id.len() == 27, "{id}");
    let path = format!("/v1/machines/{id}");
    for uid in [ALICE, 0] {
        assert_eq!(server.call(uid, Method::GET, &path, None).await.unwrap()["uid"], ALICE);
    }
    let bigger = server.call(ALICE, Method::PUT, &path, Some(json!({"memory_mib": 300}))).await.unwrap();
    assert_eq!((&bigger["id"], &bigger["memory_mib"]), (&made["id"], &json!(300)));
    // To others it looks as if there were none.
    let none = "/v1/machines/m00000000000000000000000000";
    for (method, body) in [(Method::GET, None), (Method::PUT, start.clone())] {
        let [hidden, nothing] = [
            refused(server.call(BOB, method.clone(), &path, body.clone()).await),
            refused(server.call(BOB, method.clone(), none, body).await),
        ];
        assert_eq!((hidden.0, hidden.1.replace(id, "")), (nothing.0, nothing.1.replace(&none[13..], "")));
    }
    let parsed: MachineId = id.parse().unwrap();
    server.daemon.write(move |db| machine_table::forget(db, parsed)).await.unwrap();
    // An id makes no machine, not even an administrator's request; the developer's name makes another one.
    for uid in [ALICE, 0] {
        refused(server.call(uid, Method::PUT, &path, start.clone()).await);
    }
    let again = server.call(ALICE, Method::PUT, &name, start).await.unwrap();
    assert_ne!(again["id"], made["id"]);
}

#[tokio::test]
async fn kept_variables_are_listed_by_name_and_cleared_by_their_owner() {
    let server = Server::start().await;
    let workspace = server.workspace(ALICE, "w");
    let path = format!("/v1/environments/{}", environment_id(ALICE, &workspace));
    let kept = format!("{path}/local-env");
    let body = |local_env: Value| json!({"workspace": &workspace, "desired": "running", "local_env": local_env});
    let put = async |local_env| server.call(ALICE, Method::PUT, &path, Some(body(local_env))).await.unwrap();
    let names = async || server.call(ALICE, Method::GET, &kept, None).await.unwrap();
    put(json!({"A_TOKEN": "secret", "LANG": "C"})).await;
    assert_eq!(names().await, json!(["A_TOKEN", "LANG"]));
    put(Value::Null).await;
    assert_eq!(names().await, json!(["A_TOKEN", "LANG"]), "an absent map keeps");
    for method in [Method::GET, Method::DELETE] {
        assert_eq!(refused(server.call(BOB, method, &kept, None).await).0, 404);
    }
    server.call(ALICE, Method::DELETE, &kept, None).await.unwrap();
    assert_eq!(names().await, json!([]));
    put(json!({"LANG": "C"})).await;
    put(json!({})).await;
    assert_eq!(names().await, json!([]), "an empty map clears");
}

#[tokio::test]
async fn a_system_account_and_a_uid_without_account_have_no_machine() {
    let server = Server::start().await;
    for (uid, why) in [(DAEMON, "allow_groups"), (200_001, "has no account")] {
        let path = format!("/v1/machines/{uid}");
        let (status, said) = refused(server.call(uid, Method::PUT, &path, Some(json!({"desired": "running"}))).await);
        assert_eq!(status, 403);
        assert!(said.contains(why), "{said}");
        // Rejected before the folder is looked up.
        let (status, said) = refused(server.up(uid, Path::new("/no/such/folder")).await);
        assert_eq!((status, said.contains(why)), (403, true), "{said}");
    }
}

#[tokio::test]
async fn a_developer_keeps_bounded_text_in_the_state() {
    let server = Server::start().await;
    let put = async |workspace: &str, local_env: &str| {
        let id = environment_id(ALICE, Path::new(workspace));
        let body = json!({"workspace": workspace, "desired": "stopped", "local_env": {"NAME": local_env}});
        server.call(ALICE, Method::PUT, &format!("/v1/environments/{id}"), Some(body)).await
    };
    let large = "x".repeat(200_000);
    for number in 0..5 {
        put(&format!("/w{number}"), &large).await.unwrap();
    }
    let (status, said) = refused(put("/w5", &large).await);
    assert_eq!((status, said.contains("garret env clear")), (409, true), "{said}");
    put("/w0", &large).await.unwrap();
    put("/w0", "").await.unwrap();
    put("/w5", &large).await.unwrap();
    let (status, said) = refused(put(&format!("/{}", "w".repeat(5000)), "").await);
    assert_eq!((status, said.contains("4096")), (400, true), "{said}");
}

#[tokio::test]
async fn closing_waits_for_every_machine_and_keeps_desired_states() {
    let mut server = Server::start().await;
    let request = json!({"desired": "running", "memory_mib": 1000});
    let id = server.client().put::<Machine>("/v1/machines/root", &request).await.unwrap().id;
    server.daemon.live.send_modify(|live| assert!(live.insert(id)));
    assert_eq!(server.poked.recv().await, Some(id));
    let daemon = server.daemon.clone();
    let closing = tokio::spawn(async move { daemon.close().await });
    assert_eq!(server.poked.recv().await, Some(id), "its driver is poked again");
    assert!(!closing.is_finished());
    server.daemon.live.send_modify(|live| assert!(live.remove(&id)));
    closing.await.unwrap();
    let machine: Machine = server.client().get("/v1/machines/root").await.unwrap();
    assert_eq!(machine.desired, Desired::Running);
}
