//! Runs against an agent that is a router of the test.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use axum::{Router, routing};
use hyper::StatusCode;
use tokio::sync::{Notify, Semaphore};

use super::super::driver::Driver;
use super::*;
use crate::accounts::NameService;
use crate::daemon::state::tests::{environment, machine, memory};
use crate::daemon::state::{MachineRow, Scope, WriteTx, machines};
use crate::daemon::testing::{self, id};
use crate::daemon::vmm::VmmProcess;

#[test]
fn reports_of_the_agent_are_truncated() {
    assert_eq!(truncate("aä".into(), 2), "a");
    assert_eq!(truncate("aä".into(), 3), "aä");
    let Progress::Output { text, .. } = sanitize(Progress::Output { step: "s".into(), text: "ü".repeat(1 << 20) })
    else {
        panic!("another kind");
    };
    assert_eq!(text.len(), OUTPUT_MAX);
    let problem = Problem::new(Code::Unknown, "two\nlines\u{7}");
    assert_eq!(sanitize(failed("a\nb", problem)), failed("a b", Problem::new(Code::Unknown, "two lines")));
}

#[test]
fn output_is_truncated_by_its_json_length() {
    let all: String = (0..=0x2100).filter_map(char::from_u32).collect();
    assert_eq!(json_length(&all), serde_json::to_string(&all).unwrap().len() - 2);
    for text in ["\u{1b}", "\n", "x", "€", "\"x"] {
        let kept = serde_json::to_string(&truncate_output(text.repeat(OUTPUT_MAX))).unwrap().len() - 2;
        assert!((OUTPUT_MAX - 6..=OUTPUT_MAX).contains(&kept), "{kept} of {text:?}");
    }
    assert_eq!(truncate_output("a\n".into()), "a\n");
}

#[tokio::test]
async fn output_of_alternating_steps_is_paced_and_complete() {
    let dir = tempfile::tempdir().unwrap();
    let info = serde_json::json!({"version": "1", "boot_id": "b", "pid": 1, "set_up": true});
    let line =
        |step: &str| format!("{{\"kind\":\"output\",\"step\":\"{step}\",\"text\":\"{}\"}}\n", "x".repeat(20_000));
    let end = "{\"kind\": \"failed\", \"step\": \"s\", \"problem\": {\"code\": \"c\", \"detail\": \"m\"}}\n";
    let answer = [line("a"), line("b"), line("b"), line("a"), end.to_owned()].concat();
    let router = Router::new()
        .route("/v1/agent", routing::get(async move || axum::Json(info)))
        .route("/v1/environments/{id}", routing::put(async move || answer));
    let run = run(dir.path(), environment(7, "w"), router).await;
    let begun = Instant::now();
    run.bring_up().await.unwrap();
    assert!(begun.elapsed() >= 3 * MERGE_TIME, "{:?}", begun.elapsed());
    let steps: Vec<String> = outcome(&run)
        .await
        .0
        .into_iter()
        .filter_map(|kind| match kind {
            EventKind::Environment { progress: Progress::Output { step, text }, .. } => {
                assert_eq!(text.len(), 20_000);
                Some(step)
            }
            _ => None,
        })
        .collect();
    assert_eq!(steps, ["a", "b", "b", "a"]);
}

/// The current run of `row`, in a machine whose agent is `router`.
async fn run(folder: &Path, row: EnvironmentRow, router: Router) -> EnvironmentRun {
    let (daemon, _poked) = testing::daemon(folder, NameService::default());
    let kept = row.clone();
    daemon.write(move |db| machines::put(db, &machine(7)).and_then(|()| environments::put(db, &kept))).await.unwrap();
    testing::serve_agent(&daemon, id(7), router);
    daemon.set_vmm(id(7), Some(std::process::id()));
    EnvironmentRun { daemon, owner: 7, row }
}

/// The requests that a run of generation 5 sends to an agent with these capabilities whose first answer breaks off.
async fn sent(capabilities: &[&str]) -> Vec<serde_json::Value> {
    let dir = tempfile::tempdir().unwrap();
    let info =
        serde_json::json!({"version": "1", "boot_id": "b", "pid": 1, "set_up": true, "capabilities": capabilities});
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let asked = bodies.clone();
    let put = async move |body: String| {
        let mut asked = asked.lock().unwrap();
        asked.push(serde_json::from_str(&body).unwrap());
        let end = "{\"kind\": \"failed\", \"step\": \"s\", \"problem\": {\"code\": \"c\", \"detail\": \"m\"}}\n";
        if asked.len() == 1 { "" } else { end }
    };
    let router = Router::new()
        .route("/v1/agent", routing::get(async move || axum::Json(info)))
        .route("/v1/environments/{id}", routing::put(put));
    let row = EnvironmentRow { generation: 5, ..environment(7, "w") };
    run(dir.path(), row, router).await.bring_up().await.unwrap();
    bodies.lock().unwrap().clone()
}

#[tokio::test]
async fn lost_answer_rebuilds_again_only_with_generations() {
    let bodies = sent(&[GENERATIONS]).await;
    assert_eq!(bodies.len(), 2);
    assert!(bodies.iter().all(|body| body["generation"] == 5 && body["rebuild"] == true), "{bodies:?}");
    let bodies = sent(&[]).await;
    assert!(bodies.iter().all(|body| body.get("generation").is_none()), "{bodies:?}");
    assert_eq!(bodies.iter().map(|body| body["rebuild"].clone()).collect::<Vec<_>>(), [true, false]);
}

#[tokio::test]
async fn long_error_of_a_lost_agent_is_truncated() {
    let dir = tempfile::tempdir().unwrap();
    let info = serde_json::json!({"version": "v", "boot_id": "b", "set_up": true, "pid": "x".repeat(900_000)});
    let router = Router::new().route("/v1/agent", routing::get(async move || axum::Json(info)));
    let run = run(dir.path(), EnvironmentRow { generation: 5, ..environment(7, "w") }, router).await;
    run.bring_up().await.unwrap();
    let (events, row) = outcome(&run).await;
    let [EventKind::Environment { progress: Progress::Failed { problem, .. }, .. }] = &events[..] else {
        panic!("{} events", events.len())
    };
    let kept = row.unwrap().status.problem.unwrap();
    assert!(problem.detail.starts_with("the agent is lost: "), "{problem}");
    assert!(problem.detail.len() < 1024 && kept.detail.len() < 1024, "{} {}", problem.detail.len(), kept.detail.len());
}

/// The environment's events and its stored row.
async fn outcome(run: &EnvironmentRun) -> (Vec<EventKind>, Option<EnvironmentRow>) {
    let (scope, id) = (Scope::Environment(run.row.machine, run.row.id.clone()), run.row.id.clone());
    let read = run.daemon.read(move |db| Ok((events::after(db, 0, &scope)?, environments::get(db, &id)?)));
    let (events, row) = read.await.unwrap();
    (events.into_iter().map(|event| event.what).collect(), row)
}

fn stopping() -> EnvironmentRow {
    EnvironmentRow { desired: Desired::Stopped, generation: 2, observed_generation: 1, ..environment(7, "w") }
}

#[tokio::test]
async fn a_stop_that_is_refused_ends_with_one_event_more() {
    let dir = tempfile::tempdir().unwrap();
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    let refuse = async move || {
        count.fetch_add(1, Ordering::Relaxed);
        StatusCode::SERVICE_UNAVAILABLE
    };
    let run =
        run(dir.path(), stopping(), Router::new().route("/v1/environments/{id}/stop", routing::post(refuse))).await;
    run.stop().await.unwrap();
    assert!(asked.load(Ordering::Relaxed) > 1);
    let (events, row) = outcome(&run).await;
    let [EventKind::Problem { problem }, last] = &events[..] else { panic!("{events:?}") };
    assert!(problem.detail.starts_with("cannot stop w yet; trying again: "), "{problem}");
    let EventKind::Environment { generation: 2, progress: Progress::Failed { step, .. } } = last else {
        panic!("{last:?}")
    };
    let row = row.unwrap();
    assert_eq!((step.as_str(), row.settled(), row.status.phase), ("stop", true, EnvironmentPhase::Failed));
    let said = row.status.problem.unwrap().detail;
    assert!(said.starts_with("stop: the agent did not stop the container within "), "{said}");
}

#[tokio::test]
async fn a_stop_that_is_never_answered_ends() {
    let dir = tempfile::tempdir().unwrap();
    let silent = routing::post(async || std::future::pending::<StatusCode>().await);
    let run = run(dir.path(), stopping(), Router::new().route("/v1/environments/{id}/stop", silent)).await;
    run.stop().await.unwrap();
    let (events, row) = outcome(&run).await;
    assert!(matches!(&events[..], [EventKind::Environment { progress: Progress::Failed { .. }, .. }]), "{events:?}");
    assert!(row.unwrap().settled());
}

#[tokio::test]
async fn a_removal_is_retried_with_one_event_for_all_refusals() {
    let dir = tempfile::tempdir().unwrap();
    let asked = Arc::new(AtomicU32::new(0));
    let remove = async move || match asked.fetch_add(1, Ordering::Relaxed) {
        0 | 1 => StatusCode::CONFLICT,
        _ => StatusCode::NO_CONTENT,
    };
    let router = Router::new()
        .route("/v1/environments/{id}", routing::delete(remove))
        .route("/v1/workspaces/{id}/release", routing::post(async || StatusCode::NO_CONTENT));
    let run = run(dir.path(), removed(), router).await;
    run.remove().await.unwrap();
    let (events, row) = outcome(&run).await;
    assert!(matches!(&events[..], [EventKind::Problem { .. }, EventKind::Removed { generation: 1 }]), "{events:?}");
    assert!(row.is_none());
}

fn removed() -> EnvironmentRow {
    EnvironmentRow { removed: true, observed_generation: 1, ..environment(7, "w") }
}

#[tokio::test]
async fn an_agent_that_refuses_a_removal_does_not_keep_the_workspace() {
    let dir = tempfile::tempdir().unwrap();
    let shared = Arc::new(OnceLock::<PathBuf>::new());
    let (seen, late) = (shared.clone(), Arc::new(AtomicU32::new(0)));
    let count = late.clone();
    // Refuses for longer than the run waits for the workspace.
    let refuse = routing::delete(async move || match seen.get().is_some_and(|shared| shared.exists()) {
        false if count.fetch_add(1, Ordering::Relaxed) > 0 => StatusCode::NO_CONTENT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    });
    let router = Router::new()
        .route("/v1/environments/{id}", refuse)
        .route("/v1/workspaces/{id}/release", routing::post(async || StatusCode::NO_CONTENT));
    let run = run(dir.path(), removed(), router).await;
    let workspace = shared.get_or_init(|| run.daemon.paths(id(7)).workspace("w"));
    fs::create_dir_all(workspace).unwrap();
    run.remove().await.unwrap();
    assert!(!workspace.exists());
    assert_eq!(late.load(Ordering::Relaxed), 2);
    let (events, _) = outcome(&run).await;
    assert!(matches!(&events[..], [EventKind::Problem { .. }, EventKind::Removed { .. }]), "{events:?}");
}

#[tokio::test]
async fn not_found_of_an_incompatible_agent_removes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let info = serde_json::json!({"version": "9", "boot_id": "b", "pid": 1, "set_up": true,
                                  "api": {"min": API.max + 1, "max": API.max + 1}});
    let router = Router::new().route("/v1/agent", routing::get(async move || axum::Json(info)));
    let run = run(dir.path(), removed(), router).await;
    let shared = run.daemon.paths(id(7)).workspace("w");
    fs::create_dir_all(&shared).unwrap();
    let revoked = async {
        while shared.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        removed = run.remove() => panic!("it was removed: {removed:?}"),
        () = revoked => {}
    }
    let (events, row) = outcome(&run).await;
    assert!(matches!(&events[..], [EventKind::Problem { .. }]), "{events:?}");
    assert!(row.is_some());
}

#[tokio::test]
async fn a_workspace_that_cannot_be_unmounted_keeps_its_environment() {
    let dir = tempfile::tempdir().unwrap();
    let done = async || StatusCode::NO_CONTENT;
    let router = Router::new()
        .route("/v1/environments/{id}", routing::delete(done))
        .route("/v1/workspaces/{id}/release", routing::post(done));
    let row = EnvironmentRow { workspace: "/a\nb".into(), ..removed() };
    let run = run(dir.path(), row, router).await;
    // A folder that is not empty cannot be removed, like a mount point.
    let below = run.daemon.paths(id(7)).workspace("w").join("below");
    fs::create_dir_all(&below).unwrap();
    let told = async {
        loop {
            let (events, row) = outcome(&run).await;
            if let [EventKind::Problem { problem }] = &events[..] {
                return (problem.detail.clone(), row);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let (said, row) = tokio::select! {
        removed = run.remove() => panic!("it is there still: {removed:?}"),
        told = told => told,
    };
    assert!(said.starts_with("cannot take /a b out of the machine yet; trying again: "), "{said}");
    assert!(row.is_some() && !said.contains('\n'));
    fs::remove_dir(&below).unwrap();
    run.remove().await.unwrap();
    assert!(outcome(&run).await.1.is_none());
}

#[tokio::test]
async fn an_agent_that_refuses_its_setup_keeps_no_workspace() {
    let dir = tempfile::tempdir().unwrap();
    let info = serde_json::json!({"version": "1", "boot_id": "b", "pid": 1, "set_up": true});
    let refuse = async || StatusCode::INTERNAL_SERVER_ERROR;
    let router = Router::new()
        .route("/v1/agent", routing::get(async move || axum::Json(info)))
        .route("/v1/machine", routing::put(refuse))
        .route("/v1/environments/{id}", routing::delete(refuse));
    let run = run(dir.path(), removed(), router).await;
    let shared = run.daemon.paths(id(7)).workspace("w");
    fs::create_dir_all(&shared).unwrap();
    // This process runs the agent and takes the VMM's place.
    let vmm = VmmProcess::watch(std::process::id()).unwrap().unwrap();
    let running = MachineRow { desired: Desired::Running, ..machine(7) };
    let write =
        move |db: &WriteTx<'_>| machines::put(db, &running).and_then(|()| machines::set_vmm(db, id(7), Some(&vmm.id)));
    run.daemon.write(write).await.unwrap();
    let driver = Driver::new(run.daemon.clone(), id(7), Arc::new(Notify::new()), Arc::new(Semaphore::new(1)));
    let revoked = async {
        while shared.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = driver.run() => panic!("the machine is there still"),
        () = revoked => {}
        () = tokio::time::sleep(Duration::from_secs(20)) => panic!("the workspace is there still"),
    }
}

#[test]
fn a_container_that_ended_by_itself_is_seen() {
    let db = memory();
    machines::put(&db, &machine(7)).unwrap();
    let put = |id: &str, phase, observed_generation| {
        let mut row = environment(7, id);
        (row.status.phase, row.observed_generation) = (phase, observed_generation);
        environments::put(&db, &row).unwrap();
        row.status
    };
    let ready = put("ready", EnvironmentPhase::Ready, 1);
    put("gone", EnvironmentPhase::Ready, 1);
    put("failed", EnvironmentPhase::Failed, 1);
    put("busy", EnvironmentPhase::Starting, 0);
    assert!(observe_all(&db, id(7), vec![ready.clone()]).unwrap());
    let phases: Vec<_> =
        environments::of_machine(&db, id(7)).unwrap().into_iter().map(|row| (row.id, row.status.phase)).collect();
    use EnvironmentPhase::*;
    let expected = [("busy", Starting), ("failed", Failed), ("gone", Stopped), ("ready", Ready)];
    assert_eq!(phases, expected.map(|(id, phase)| (id.to_string(), phase)));
    assert!(!observe_all(&db, id(7), vec![ready]).unwrap());
}
