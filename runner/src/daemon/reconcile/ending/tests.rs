//! Stops of a machine whose VMM is a process of the test, and whose agent and API are routers of the test.

use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::routing::{self, MethodRouter};
use hyper::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::sync::{Notify, Semaphore};

use super::*;
use crate::accounts::NameService;
use crate::daemon::Daemon;
use crate::daemon::memory::PauseState;
use crate::daemon::state::Scope;
use crate::daemon::state::tests::machine;
use crate::daemon::testing::{self, id};

/// The requests to agent and VMM, in their order.
type Requests = Arc<Mutex<Vec<&'static str>>>;

/// What the guest does when it is asked to power off, and the VMM when it is asked to end.
#[derive(Clone, Copy, PartialEq)]
enum Answer {
    /// The VMM's process ends.
    Ends,
    /// The request is accepted, and nothing follows.
    Accepts,
    /// There is never an answer.
    Silence,
}

struct Rig {
    _dir: TempDir,
    daemon: Arc<Daemon>,
    driver: Driver,
    vmm: Child,
    requests: Requests,
}

impl Rig {
    /// A machine that runs, with this stop_deadline_s.
    async fn new(patience: u64, guest: Answer, vmm: Answer) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (daemon, _poked) = testing::daemon_with(dir.path(), NameService::default(), |config| {
            config.machine.stop_deadline_s = patience;
        });
        daemon.write(|db| machines::put(db, &machine(7))).await.unwrap();
        let process = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = process.id();
        let requests = Requests::default();
        let route = |request, answer| handler(requests.clone(), request, answer, pid);
        testing::serve_agent(&daemon, id(7), Router::new().route("/v1/power-off", route("power-off", guest)));
        let api = Router::new()
            .route("/v1/pause", route("pause", Answer::Accepts))
            .route("/v1/resume", route("resume", Answer::Accepts))
            .route("/v1/power-button", route("power-button", Answer::Accepts))
            .route("/v1/shutdown", route("shutdown", vmm));
        testing::serve_vmm(&daemon, id(7), api);
        // This process serves both sockets.
        daemon.set_vmm(id(7), Some(std::process::id()));
        daemon.memory.pauses.started(id(7));
        let mut driver = Driver::new(daemon.clone(), id(7), Arc::new(Notify::new()), Arc::new(Semaphore::new(1)));
        driver.vmm = VmmState::Ready(VmmProcess::watch(pid).unwrap().unwrap());
        Self { _dir: dir, daemon, driver, vmm: process, requests }
    }

    async fn halt(&mut self) {
        self.driver.halt(&machine(7)).await.unwrap();
        assert!(matches!(self.driver.vmm, VmmState::Dead) && self.driver.asked);
        assert!(self.vmm.try_wait().unwrap().is_some(), "the VMM runs on");
    }

    /// The requests, without repetitions.
    fn requests(&self) -> Vec<&'static str> {
        let mut requests = self.requests.lock().unwrap().clone();
        requests.dedup();
        requests
    }

    /// What the power cuts say of which there are events.
    async fn power_cuts(&self) -> Vec<String> {
        let events = self.daemon.read(|db| events::after(db, 0, &Scope::Owner(7))).await.unwrap();
        let cut = |kind| match kind {
            EventKind::Problem { problem } if problem.code == Code::PowerCut => Some(problem.detail),
            _ => None,
        };
        events.into_iter().filter_map(|event| cut(event.what)).collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ended = (self.vmm.kill(), self.vmm.wait());
    }
}

/// Notes the request before it answers.
fn handler(requests: Requests, request: &'static str, answer: Answer, vmm: u32) -> MethodRouter {
    routing::post(async move || {
        requests.lock().unwrap().push(request);
        match answer {
            Answer::Ends => kill_process(Pid::from_raw(vmm as i32).unwrap(), Signal::KILL).unwrap(),
            Answer::Accepts => {}
            Answer::Silence => std::future::pending().await,
        }
        StatusCode::NO_CONTENT
    })
}

#[tokio::test]
async fn a_guest_that_does_not_end_loses_its_power_at_the_deadline() {
    // A silent agent must not take the time of the power button.
    for guest in [Answer::Accepts, Answer::Silence] {
        let mut rig = Rig::new(2, guest, Answer::Ends).await;
        let begun = Instant::now();
        rig.halt().await;
        assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
        let requests = rig.requests();
        assert!(requests.starts_with(&["power-off", "power-button"]), "{requests:?}");
        assert_eq!(requests.last(), Some(&"shutdown"));
        assert_eq!(rig.power_cuts().await, ["the guest did not power off within 2 s: its power is cut"]);
    }
}

#[tokio::test]
async fn a_vmm_that_does_not_end_is_killed() {
    let mut rig = Rig::new(1, Answer::Silence, Answer::Silence).await;
    rig.halt().await;
    assert_eq!((rig.requests().last(), rig.power_cuts().await.len()), (Some(&"shutdown"), 1));
}

#[tokio::test]
async fn a_guest_that_ends_in_time_keeps_its_power() {
    let mut rig = Rig::new(60, Answer::Ends, Answer::Ends).await;
    rig.halt().await;
    assert_eq!(rig.requests(), ["power-off"]);
    assert_eq!(rig.power_cuts().await, [""; 0]);
}

#[tokio::test]
async fn a_paused_guest_is_resumed_before_it_is_asked() {
    let mut rig = Rig::new(60, Answer::Ends, Answer::Ends).await;
    let vmm = rig.daemon.vmm(id(7), VMM_DEADLINE);
    rig.daemon.memory.pauses.pause(id(7), &vmm).await.unwrap();
    assert_eq!(rig.daemon.memory.pauses.state(id(7)), PauseState::Paused);
    rig.halt().await;
    assert_eq!(rig.requests(), ["pause", "resume", "power-off"]);
    assert_eq!(rig.power_cuts().await, [""; 0]);
}

#[test]
fn last_words_are_read_and_rubbish_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("last-words.json");
    assert_eq!(last_words(&path), None);
    fs::write(&path, r#"{"reason":"panic","message":"oops"}"#).unwrap();
    assert_eq!(last_words(&path).unwrap().message, "oops");
    fs::write(&path, vec![b'{'; 1 << 20]).unwrap();
    assert_eq!(last_words(&path), None);
}

#[test]
fn the_logs_last_line_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vmm.log");
    assert_eq!(tail(&path), "");
    fs::write(&path, "first\nthread 'main' panicked\n\n").unwrap();
    assert_eq!(tail(&path), "thread 'main' panicked");
}
