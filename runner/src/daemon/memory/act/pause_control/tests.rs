use axum::routing::{get, post};
use axum::{Json, Router};
use hyper::StatusCode;
use tempfile::TempDir;
use tokio::net::UnixListener;

use super::*;
use crate::daemon::memory::tests::machine_info;
use crate::daemon::testing::id;

/// A VMM that is slow to pause, and a record of the requests to it. Its state follows from the requests.
fn vmm(pause: StatusCode) -> (TempDir, Client, Arc<Mutex<Vec<&'static str>>>) {
    let dir = tempfile::tempdir().unwrap();
    let requests: Arc<Mutex<Vec<&'static str>>> = Arc::default();
    let (first, second, third) = (requests.clone(), requests.clone(), requests.clone());
    let router = Router::new()
        .route(
            "/v1/pause",
            post(async move || {
                tokio::time::sleep(Duration::from_millis(50)).await;
                first.lock().unwrap().push("pause");
                pause
            }),
        )
        .route(
            "/v1/resume",
            post(async move || {
                second.lock().unwrap().push("resume");
                StatusCode::NO_CONTENT
            }),
        )
        .route(
            "/v1/machine",
            get(async move || {
                let paused = third.lock().unwrap().last() == Some(&"pause");
                tokio::time::sleep(Duration::from_millis(50)).await;
                Json(machine_info(if paused { MachineState::Paused } else { MachineState::Running }))
            }),
        );
    let listener = UnixListener::bind(dir.path().join("api.sock")).unwrap();
    tokio::spawn(axum::serve(listener, router).into_future());
    let client = Client::unix(dir.path().join("api.sock"));
    (dir, client, requests)
}

#[tokio::test]
async fn machine_needed_during_its_pause_is_resumed() {
    let (_dir, vmm, requests) = vmm(StatusCode::NO_CONTENT);
    let pauses = Arc::new(PauseControl { linger: Duration::ZERO, ..PauseControl::default() });
    pauses.started(id(7));
    let (pausing, client) = (pauses.clone(), vmm.clone());
    let paused = tokio::spawn(async move { pausing.pause(id(7), &client).await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    let needed = pauses.wake(id(7), &vmm).await;
    paused.await.unwrap().unwrap();
    assert_eq!(*requests.lock().unwrap(), ["pause", "resume"]);
    assert_eq!((pauses.state(id(7)), pauses.is_needed(id(7))), (PauseState::Running, true));

    pauses.pause(id(7), &vmm).await.unwrap();
    assert_eq!(pauses.state(id(7)), PauseState::Running, "it is needed");
    drop(needed);
    pauses.pause(id(7), &vmm).await.unwrap();
    assert_eq!((pauses.state(id(7)), pauses.is_needed(id(7))), (PauseState::Paused, false));
    pauses.resume(id(7), &vmm).await.unwrap();
    pauses.wait_until_running(id(7)).await;
}

#[tokio::test]
async fn machine_in_an_unknown_state_is_resumed() {
    let (_dir, vmm, requests) = vmm(StatusCode::NO_CONTENT);
    let pauses = PauseControl::default();
    drop(pauses.wake(id(7), &vmm).await);
    drop(pauses.wake(id(7), &vmm).await);
    assert_eq!(*requests.lock().unwrap(), ["resume"]);
    pauses.pause(id(7), &vmm).await.unwrap();
    assert_eq!((pauses.state(id(7)), pauses.is_needed(id(7))), (PauseState::Running, true), "the need lingers");
}

#[tokio::test]
async fn check_corrects_the_state_of_a_paused_machine() {
    let (_dir, vmm, requests) = vmm(StatusCode::NO_CONTENT);
    let pauses = PauseControl { linger: Duration::ZERO, ..PauseControl::default() };
    requests.lock().unwrap().push("pause");
    pauses.check(id(7), &vmm).await;
    assert_eq!(pauses.state(id(7)), PauseState::Paused, "an earlier runner left it");
    pauses.resume(id(7), &vmm).await.unwrap();
    pauses.pause(id(7), &vmm).await.unwrap();
    pauses.check(id(7), &vmm).await;
    assert_eq!(pauses.state(id(7)), PauseState::Paused);
    requests.lock().unwrap().push("resume"); // by itself: its lease expired
    pauses.check(id(7), &vmm).await;
    assert_eq!(pauses.state(id(7)), PauseState::Running);
    pauses.pause(id(7), &vmm).await.unwrap();
    assert_eq!(*requests.lock().unwrap(), ["pause", "resume", "pause", "resume", "pause"]);
}

#[tokio::test]
async fn a_check_during_a_pause_or_a_start_changes_nothing() {
    let (_dir, vmm, _) = vmm(StatusCode::NO_CONTENT);
    let pauses = Arc::new(PauseControl { linger: Duration::ZERO, ..PauseControl::default() });
    pauses.started(id(7));
    let (pausing, client) = (pauses.clone(), vmm.clone());
    let paused = tokio::spawn(async move { pausing.pause(id(7), &client).await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    pauses.check(id(7), &vmm).await;
    assert_eq!(pauses.state(id(7)), PauseState::Paused, "the VMM still says that it runs");
    paused.await.unwrap().unwrap();
    // The state of another machine is unknown, and its old VMM answers "paused" after a new one has started.
    let (checking, client) = (pauses.clone(), vmm.clone());
    let check = tokio::spawn(async move { checking.check(id(8), &client).await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    pauses.started(id(8));
    check.await.unwrap();
    assert_eq!(pauses.state(id(8)), PauseState::Running);
}

#[tokio::test]
async fn a_refused_pause_runs_and_silence_is_unknown() {
    let (_dir, refusing, _) = vmm(StatusCode::CONFLICT);
    let pauses = PauseControl::default();
    pauses.started(id(7));
    assert!(pauses.pause(id(7), &refusing).await.is_err());
    assert_eq!(pauses.state(id(7)), PauseState::Running);
    let (_dir, slow, requests) = vmm(StatusCode::NO_CONTENT);
    assert!(pauses.pause(id(7), &slow.clone().with_deadline(Duration::from_millis(5))).await.is_err());
    assert_eq!(pauses.state(id(7)), PauseState::Unknown);
    requests.lock().unwrap().push("pause");
    pauses.check(id(7), &slow).await;
    assert_eq!(pauses.state(id(7)), PauseState::Paused);
}

#[tokio::test]
async fn only_machines_that_are_gone_and_unused_are_forgotten() {
    let (_dir, vmm, _) = vmm(StatusCode::NO_CONTENT);
    let pauses = PauseControl::default();
    pauses.started(id(7));
    pauses.started(id(8));
    let needed = pauses.wake(id(9), &vmm).await;
    pauses.retain(|machine| machine == id(7));
    let known = || pauses.machines.lock().unwrap().len();
    assert_eq!((known(), pauses.is_needed(id(9)), pauses.state(id(7))), (2, true, PauseState::Running));
    drop(needed);
    pauses.retain(|machine| machine == id(7));
    assert_eq!(known(), 1);
}
