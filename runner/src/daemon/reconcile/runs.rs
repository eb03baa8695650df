//! What is done to one environment: up, stop, remove. Each is a task of its own beside the machine's driver.
//!
//! Everything the agent says comes from the guest: it is clipped, counted and paced before it is kept.

use std::sync::Arc;
use std::time::Duration;

use garret_api::agent::{API, AgentInfo, EnvironmentPhase, EnvironmentSpec, EnvironmentStatus, GENERATIONS, Progress};
use garret_api::client::{Client, Error, Lines};
use garret_api::runner::{Desired, Happening};
use garret_api::{Problem, one_line};
use hyper::Method;
use rusqlite::Connection;
use tokio::time::{Instant, timeout};

use super::backoff::backoff;
use crate::daemon::Daemon;
use crate::daemon::state::{EnvironmentRow, environments, events};
use crate::daemon::workspace::Revoked;
use crate::host;

/// How long the agent may take to begin an answer; stopping a container may take its own ten seconds.
const DEADLINE: Duration = Duration::from_secs(120);
/// How often a run is taken up again after its connection broke (the agent was restarted).
const TRIES: u32 = 5;
const RETRY: Duration = Duration::from_secs(1);
/// The longest pause before an agent that refuses or is silent is asked again to stop or remove something.
const INSIST_PAUSE_MAX: Duration = Duration::from_secs(60);
/// The most of a step's output that one event holds, in bytes of the JSON text that is kept.
const OUTPUT_MAX: usize = 32 * 1024;
/// Output is gathered for this long, which bounds what a guest can make us write per second.
const GATHER: Duration = Duration::from_millis(30);
/// The most events other than output a run may have.
const STEPS_MAX: u32 = 2000;
/// The longest name or value the agent may tell, in characters.
const WORD_MAX: usize = 4096;

/// One environment and the machine it is in.
pub(super) struct Run {
    pub(super) daemon: Arc<Daemon>,
    pub(super) machine: String,
    pub(super) row: EnvironmentRow,
}

/// How following the agent ended.
enum Followed {
    /// With this last line.
    Ended(Progress),
    /// Nobody knows: the connection broke.
    Lost(Error),
}

impl Run {
    /// Brings the environment up and keeps every step.
    pub(super) async fn bring_up(&self) -> rusqlite::Result<()> {
        let mut spec = self.spec();
        for attempt in 1..=TRIES {
            match self.attempt(&mut spec).await? {
                Followed::Ended(progress) => return finish(&self.daemon, &self.row, progress).await,
                Followed::Lost(error) if attempt == TRIES => {
                    let problem = Problem::new("unavailable", format!("the agent is lost: {error}")).clipped();
                    return finish(&self.daemon, &self.row, failed("agent", problem)).await;
                }
                Followed::Lost(error) => {
                    tracing::warn!(environment = self.row.id, "the agent's answer broke off: {error}");
                    tokio::time::sleep(RETRY).await;
                    // An agent that does not count runs may have begun this one: a second removal would throw away what
                    // the first has made. Others rebuild once per generation.
                    spec.rebuild &= spec.generation != 0;
                }
            }
        }
        Ok(())
    }

    fn spec(&self) -> EnvironmentSpec {
        EnvironmentSpec {
            share: self.row.id.clone(),
            host_path: self.row.workspace.to_string_lossy().into_owned(),
            config: self.row.config.clone(),
            local_env: self.row.local_env.clone(),
            rebuild: self.row.rebuild,
            generation: 0,
        }
    }

    /// One try. The agent may have been replaced since the last one, so it is asked each time what it can do.
    async fn attempt(&self, spec: &mut EnvironmentSpec) -> rusqlite::Result<Followed> {
        let info: AgentInfo = match self.agent().get("/v1/agent").await {
            Ok(info) => info,
            Err(error) => return Ok(Followed::Lost(error)),
        };
        spec.generation = if info.can(GENERATIONS) { self.row.generation } else { 0 };
        self.follow(spec).await
    }

    async fn follow(&self, spec: &EnvironmentSpec) -> rusqlite::Result<Followed> {
        let lines = match self.agent().lines::<Progress, _>(Method::PUT, &self.path(""), Some(spec)).await {
            Ok(lines) => lines,
            Err(Error::Problem { problem, .. }) => {
                return Ok(Followed::Ended(failed("environment", problem.clipped())));
            }
            Err(error) => return Ok(Followed::Lost(error)),
        };
        let mut steps = 0;
        let mut pending = None;
        let mut lines = Gathered { lines, pending: &mut pending };
        loop {
            match lines.next().await {
                Ok(Some(last @ (Progress::Failed { .. } | Progress::Ready { .. }))) => {
                    return Ok(Followed::Ended(last));
                }
                Ok(Some(progress)) => {
                    steps += u32::from(!matches!(progress, Progress::Output { .. }));
                    if steps > STEPS_MAX {
                        let problem =
                            Problem::new("internal", format!("the agent tells of more than {STEPS_MAX} steps"));
                        return Ok(Followed::Ended(failed("agent", problem)));
                    }
                    self.keep(progress).await?;
                }
                Ok(None) => {
                    let detail = "the agent's answer has no end".to_string();
                    return Ok(Followed::Lost(Error::Broken { target: self.machine.clone(), detail }));
                }
                Err(error) => return Ok(Followed::Lost(error)),
            }
        }
    }

    async fn keep(&self, progress: Progress) -> rusqlite::Result<()> {
        let row = self.row.clone();
        self.daemon.write(move |db| environments::add_progress(db, &row, progress)).await
    }

    /// Stops the container and keeps it.
    pub(super) async fn stop(&self) -> rusqlite::Result<()> {
        if let Err(problem) = self.stop_container().await? {
            return finish(&self.daemon, &self.row, failed("stop", problem)).await;
        }
        let status = EnvironmentStatus { phase: EnvironmentPhase::Stopped, problem: None, ..self.row.status.clone() };
        let row = EnvironmentRow { status, rebuild: false, ..self.row.clone() };
        let last = Happening::Stopped { generation: row.generation };
        self.daemon.write(move |db| environments::end_run(db, &row, &last).map(drop)).await
    }

    /// Removes the container, and takes the workspace out of the machine.
    pub(super) async fn remove(&self) -> rusqlite::Result<()> {
        let deadline = Duration::from_secs(self.daemon.config.machine.stop_deadline_s);
        let mut refusals = 0;
        let released = timeout(deadline, self.release(&mut refusals)).await;
        // A guest that refuses does not keep the workspace.
        self.revoke_workspace().await?;
        match released {
            Ok(released) => released?,
            Err(_) => self.release(&mut refusals).await?,
        }
        let row = self.row.clone();
        self.daemon.write(move |db| environments::forget(db, &row)).await
    }

    /// Asks the agent to remove the container and to let go of the workspace, until it has done both.
    async fn release(&self, refusals: &mut u32) -> rusqlite::Result<()> {
        self.insist("remove", Method::DELETE, &self.path(""), refusals).await?;
        self.insist("release", Method::POST, &format!("/v1/workspaces/{}/release", self.row.id), refusals).await
    }

    /// Takes the workspace out of the machine, and tells if the machine still uses it. Tries until it is unmounted.
    async fn revoke_workspace(&self) -> rusqlite::Result<()> {
        let paths = self.daemon.paths(&self.machine);
        // The path is the developer's: it may have line breaks, and this goes into the daemon's log.
        let workspace = one_line(&self.row.workspace.display().to_string());
        let mut failures = 0;
        let revoked = loop {
            let vmm = self.daemon.vmm_pid(&self.machine);
            match self.daemon.workspaces.revoke(self.row.uid, &paths, &self.row.id, vmm).await {
                Ok(revoked) => break revoked,
                Err(error) => {
                    let said = format!("cannot take {workspace} out of the machine yet, tried again: {error:#}");
                    self.failed_try(&mut failures, Problem::new("workspace-held", said)).await?;
                }
            }
        };
        let what = match revoked {
            Revoked::Unused => None,
            Revoked::Held(files) => Some(format!("the machine still has {files} files of {workspace} open")),
            Revoked::Unknown(error) => {
                Some(format!("cannot find out whether the machine still has files of {workspace} open: {error}"))
            }
        };
        if let Some(what) = what {
            let problem = Problem::new("workspace-held", format!("{what}; it can use them until `garret stop`"));
            tracing::warn!("{problem}");
            self.tell(problem).await?;
        }
        host::forget_revocation(&paths, &self.row.id);
        Ok(())
    }

    /// Asks the agent to stop the container, for as long as a whole machine may take to stop.
    pub(super) async fn stop_container(&self) -> rusqlite::Result<Result<(), Problem>> {
        let deadline = Duration::from_secs(self.daemon.config.machine.stop_deadline_s);
        match timeout(deadline, self.insist("stop", Method::POST, &self.path("/stop"), &mut 0)).await {
            Ok(done) => done.map(Ok),
            Err(_) => {
                let waited = deadline.as_secs();
                let said = format!(
                    "the agent did not stop the container within {waited} s: `garret stop` stops the whole machine"
                );
                Ok(Err(Problem::new("unavailable", said)))
            }
        }
    }

    /// Asks the agent until it has done it. What is not there (404) needs nothing done. `refusals` counts those of the run.
    async fn insist(&self, what: &str, method: Method, path: &str, refusals: &mut u32) -> rusqlite::Result<()> {
        let agent = self.agent();
        loop {
            let error = match agent.send::<()>(method.clone(), path, None).await {
                Ok(()) => return Ok(()),
                Err(error) if error.status() == Some(404) && self.agent_is_compatible().await => return Ok(()),
                Err(error) => error,
            };
            let said = format!("cannot {what} {} yet, tried again: {error}", self.row.id);
            self.failed_try(refusals, Problem::new("unavailable", said).clipped()).await?;
        }
    }

    /// An agent of another API version answers 404 to a call that it does not know.
    async fn agent_is_compatible(&self) -> bool {
        self.agent().get::<AgentInfo>("/v1/agent").await.is_ok_and(|info| API.overlaps(info.api))
    }

    /// Counts a failed try and pauses, ever longer. Only the first becomes an event: how it ended, the run's last event says.
    async fn failed_try(&self, failures: &mut u32, problem: Problem) -> rusqlite::Result<()> {
        *failures += 1;
        if *failures == 1 {
            tracing::warn!("{problem}");
            self.tell(problem).await?;
        }
        tokio::time::sleep(backoff(*failures, INSIST_PAUSE_MAX)).await;
        Ok(())
    }

    async fn tell(&self, problem: Problem) -> rusqlite::Result<()> {
        let (uid, id) = (self.row.uid, self.row.id.clone());
        self.daemon.write(move |db| events::add(db, uid, Some(&id), &Happening::Problem { problem })).await
    }

    fn agent(&self) -> Client {
        self.daemon.agent(&self.machine, DEADLINE)
    }

    pub(super) fn path(&self, below: &str) -> String {
        format!("/v1/environments/{}{below}", self.row.id)
    }
}

/// The agent's lines, with what a step prints gathered into larger pieces.
struct Gathered<'a> {
    lines: Lines<Progress>,
    /// A line that was read while gathering and is not part of it.
    pending: &'a mut Option<Progress>,
}

impl Gathered<'_> {
    async fn next(&mut self) -> garret_api::client::Result<Option<Progress>> {
        let first = match self.pending.take() {
            Some(progress) => Some(progress),
            None => self.lines.next().await?.map(tame),
        };
        let Some(Progress::Output { step, mut text }) = first else { return Ok(first) };
        let until = Instant::now() + GATHER;
        let mut length = kept_length(&text);
        loop {
            match tokio::time::timeout_at(until, self.lines.next()).await {
                Ok(Ok(Some(next))) => match tame(next) {
                    Progress::Output { step: same, text: more }
                        if same == step && length + kept_length(&more) <= OUTPUT_MAX =>
                    {
                        length += kept_length(&more);
                        text.push_str(&more);
                    }
                    // Full before its time, or of another step: a guest that prints faster than this waits.
                    other @ Progress::Output { .. } => {
                        *self.pending = Some(other);
                        break;
                    }
                    other => {
                        *self.pending = Some(other);
                        return Ok(Some(Progress::Output { step, text }));
                    }
                },
                // The end or the error comes again at the next call.
                Ok(_) | Err(_) => return Ok(Some(Progress::Output { step, text })),
            }
        }
        tokio::time::sleep_until(until).await;
        Ok(Some(Progress::Output { step, text }))
    }
}

/// The last step of a run, and the status that follows from it, in one.
pub(super) async fn finish(daemon: &Daemon, row: &EnvironmentRow, last: Progress) -> rusqlite::Result<()> {
    let status = match &last {
        Progress::Ready { environment } => EnvironmentStatus { id: row.id.clone(), ..environment.clone() },
        Progress::Failed { step, problem } => EnvironmentStatus {
            phase: EnvironmentPhase::Failed,
            problem: Some(Problem::new(&problem.code, format!("{step}: {}", problem.message))),
            ..row.status.clone()
        },
        // Nothing else ends a run.
        _ => return Ok(()),
    };
    let row = EnvironmentRow { status, rebuild: false, ..row.clone() };
    let last = Happening::Environment { generation: row.generation, progress: last };
    daemon.write(move |db| environments::end_run(db, &row, &last).map(drop)).await
}

/// Takes over what the agent tells of settled environments; gives whether anything is different.
pub(super) fn observe_all(db: &Connection, uid: u32, told: Vec<EnvironmentStatus>) -> rusqlite::Result<bool> {
    let mut changed = false;
    for row in environments::of_machine(db, uid)? {
        if !row.settled() || row.removed || row.desired != Desired::Running {
            continue;
        }
        let status = match told.iter().find(|status| status.id == row.id) {
            Some(status) => tame_status(status.clone()),
            None => EnvironmentStatus { phase: EnvironmentPhase::Stopped, container_id: None, ..row.status.clone() },
        };
        // A failed run stays failed, and says why, until somebody asks again.
        if row.status.phase != EnvironmentPhase::Failed && status != row.status {
            environments::observe(db, &row, &status)?;
            changed = true;
        }
    }
    Ok(changed)
}

fn failed(step: &str, problem: Problem) -> Progress {
    Progress::Failed { step: step.into(), problem }
}

/// What the agent says, in measure.
fn tame(progress: Progress) -> Progress {
    match progress {
        Progress::Started { step } => Progress::Started { step: one_line(&step) },
        Progress::Output { step, text } => Progress::Output { step: one_line(&step), text: cut_output(text) },
        Progress::Finished { step, ms } => Progress::Finished { step: one_line(&step), ms },
        Progress::Failed { step, problem } => Progress::Failed { step: one_line(&step), problem: problem.clipped() },
        Progress::Ready { environment } => Progress::Ready { environment: tame_status(environment) },
        Progress::Unknown => Progress::Unknown,
    }
}

fn tame_status(status: EnvironmentStatus) -> EnvironmentStatus {
    let word = |word: Option<String>| word.map(|word| cut(word, WORD_MAX));
    EnvironmentStatus {
        id: cut(status.id, WORD_MAX),
        phase: status.phase,
        container_id: word(status.container_id),
        remote_user: word(status.remote_user),
        workspace_folder: word(status.workspace_folder),
        problem: status.problem.map(Problem::clipped),
    }
}

/// The most of a text that is kept of an event's output.
fn cut_output(mut text: String) -> String {
    let mut length = 0;
    let end = text.char_indices().find_map(|(at, char)| {
        length += kept_bytes(char);
        (length > OUTPUT_MAX).then_some(at)
    });
    text.truncate(end.unwrap_or(text.len()));
    text
}

/// The bytes that the text has in JSON.
fn kept_length(text: &str) -> usize {
    text.chars().map(kept_bytes).sum()
}

/// The bytes that a character has in JSON (RFC 8259, 7).
fn kept_bytes(char: char) -> usize {
    match char {
        '"' | '\\' | '\u{8}' | '\t' | '\n' | '\u{c}' | '\r' => 2,
        '\0'..='\u{1f}' => 6,
        _ => char.len_utf8(),
    }
}

/// At most `max` bytes, whole characters.
fn cut(mut text: String, max: usize) -> String {
    let end = (0..=max.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Mutex, OnceLock};

    use axum::{Router, routing};
    use hyper::StatusCode;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{UnixListener, UnixStream};
    use tokio::sync::{Notify, Semaphore};

    use super::super::driver::Driver;
    use super::*;
    use crate::accounts::NameService;
    use crate::daemon::state::tests::{environment, machine, memory};
    use crate::daemon::state::{MachineRow, Scope, machines};
    use crate::daemon::testing;
    use crate::daemon::vmm::VmmProcess;

    #[test]
    fn what_the_agent_says_is_kept_in_measure() {
        assert_eq!(cut("aä".into(), 2), "a");
        assert_eq!(cut("aä".into(), 3), "aä");
        let Progress::Output { text, .. } = tame(Progress::Output { step: "s".into(), text: "ü".repeat(1 << 20) })
        else {
            panic!("another kind");
        };
        assert_eq!(text.len(), OUTPUT_MAX);
        let problem = Problem::new("x", "two\nlines\u{7}");
        assert_eq!(tame(failed("a\nb", problem)), failed("a b", Problem::new("x", "two lines")));
    }

    #[test]
    fn output_is_cut_by_what_is_kept_of_it() {
        let all: String = (0..=0x2100).filter_map(char::from_u32).collect();
        assert_eq!(kept_length(&all), serde_json::to_string(&all).unwrap().len() - 2);
        for text in ["\u{1b}", "\n", "x", "€", "\"x"] {
            let kept = serde_json::to_string(&cut_output(text.repeat(OUTPUT_MAX))).unwrap().len() - 2;
            assert!((OUTPUT_MAX - 6..=OUTPUT_MAX).contains(&kept), "{kept} of {text:?}");
        }
        assert_eq!(cut_output("a\n".into()), "a\n");
    }

    #[tokio::test]
    async fn output_of_two_steps_in_turn_is_paced_and_kept_whole() {
        let dir = tempfile::tempdir().unwrap();
        let info = serde_json::json!({"version": "1", "boot_id": "b", "pid": 1, "set_up": true});
        let line =
            |step: &str| format!("{{\"kind\":\"output\",\"step\":\"{step}\",\"text\":\"{}\"}}\n", "x".repeat(20_000));
        let end = "{\"kind\": \"failed\", \"step\": \"s\", \"problem\": {\"code\": \"c\", \"message\": \"m\"}}\n";
        let answer = [line("a"), line("b"), line("b"), line("a"), end.to_owned()].concat();
        let router = Router::new()
            .route("/v1/agent", routing::get(async move || axum::Json(info)))
            .route("/v1/environments/{id}", routing::put(async move || answer));
        let run = run(dir.path(), environment(7, "w"), router).await;
        let begun = Instant::now();
        run.bring_up().await.unwrap();
        assert!(begun.elapsed() >= 3 * GATHER, "{:?}", begun.elapsed());
        let steps: Vec<String> = outcome(&run)
            .await
            .0
            .into_iter()
            .filter_map(|happening| match happening {
                Happening::Environment { progress: Progress::Output { step, text }, .. } => {
                    assert_eq!(text.len(), 20_000);
                    Some(step)
                }
                _ => None,
            })
            .collect();
        assert_eq!(steps, ["a", "b", "b", "a"]);
    }

    /// A VMM's vsock socket, behind which an HTTP server listens.
    struct Vsock(UnixListener);

    impl axum::serve::Listener for Vsock {
        type Io = UnixStream;
        type Addr = ();

        async fn accept(&mut self) -> (UnixStream, ()) {
            let (mut stream, _) = self.0.accept().await.unwrap();
            while stream.read_u8().await.unwrap() != b'\n' {}
            stream.write_all(b"OK 1\n").await.unwrap();
            (stream, ())
        }

        fn local_addr(&self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The present run of `row`, in a machine whose agent is `router`.
    async fn run(folder: &Path, row: EnvironmentRow, router: Router) -> Run {
        let (daemon, _poked) = testing::daemon(folder, NameService::default());
        let kept = row.clone();
        daemon
            .write(move |db| machines::put(db, &machine(7)).and_then(|()| environments::put(db, &kept)))
            .await
            .unwrap();
        let socket = daemon.paths("dev7").vsock_socket();
        fs::create_dir_all(socket.parent().unwrap()).unwrap();
        tokio::spawn(axum::serve(Vsock(UnixListener::bind(socket).unwrap()), router).into_future());
        daemon.set_vmm("dev7", Some(std::process::id()));
        Run { daemon, machine: "dev7".into(), row }
    }

    /// What a run of generation 5 sends to an agent with these capabilities, whose first answer breaks off.
    async fn sent(capabilities: &[&str]) -> Vec<serde_json::Value> {
        let dir = tempfile::tempdir().unwrap();
        let info =
            serde_json::json!({"version": "1", "boot_id": "b", "pid": 1, "set_up": true, "capabilities": capabilities});
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let asked = bodies.clone();
        let put = async move |body: String| {
            let mut asked = asked.lock().unwrap();
            asked.push(serde_json::from_str(&body).unwrap());
            let end = "{\"kind\": \"failed\", \"step\": \"s\", \"problem\": {\"code\": \"c\", \"message\": \"m\"}}\n";
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
    async fn an_agent_of_many_words_is_lost_in_one_short_line() {
        let dir = tempfile::tempdir().unwrap();
        let info = serde_json::json!({"version": "v", "boot_id": "b", "set_up": true, "pid": "x".repeat(900_000)});
        let router = Router::new().route("/v1/agent", routing::get(async move || axum::Json(info)));
        let run = run(dir.path(), EnvironmentRow { generation: 5, ..environment(7, "w") }, router).await;
        run.bring_up().await.unwrap();
        let (events, row) = outcome(&run).await;
        let [Happening::Environment { progress: Progress::Failed { problem, .. }, .. }] = &events[..] else {
            panic!("{} events", events.len())
        };
        let kept = row.unwrap().status.problem.unwrap();
        assert!(problem.message.starts_with("the agent is lost: "), "{problem}");
        assert!(
            problem.message.len() < 1024 && kept.message.len() < 1024,
            "{} {}",
            problem.message.len(),
            kept.message.len()
        );
    }

    /// What has happened to the environment and what is kept of it.
    async fn outcome(run: &Run) -> (Vec<Happening>, Option<EnvironmentRow>) {
        let (scope, id) = (Scope::Environment(run.row.uid, run.row.id.clone()), run.row.id.clone());
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
        let [Happening::Problem { problem }, last] = &events[..] else { panic!("{events:?}") };
        assert!(problem.message.starts_with("cannot stop w yet, tried again: "), "{problem}");
        let Happening::Environment { generation: 2, progress: Progress::Failed { step, .. } } = last else {
            panic!("{last:?}")
        };
        let row = row.unwrap();
        assert_eq!((step.as_str(), row.settled(), row.status.phase), ("stop", true, EnvironmentPhase::Failed));
        let said = row.status.problem.unwrap().message;
        assert!(said.starts_with("stop: the agent did not stop the container within "), "{said}");
    }

    #[tokio::test]
    async fn a_stop_that_is_never_answered_ends() {
        let dir = tempfile::tempdir().unwrap();
        let silent = routing::post(async || std::future::pending::<StatusCode>().await);
        let run = run(dir.path(), stopping(), Router::new().route("/v1/environments/{id}/stop", silent)).await;
        run.stop().await.unwrap();
        let (events, row) = outcome(&run).await;
        assert!(
            matches!(&events[..], [Happening::Environment { progress: Progress::Failed { .. }, .. }]),
            "{events:?}"
        );
        assert!(row.unwrap().settled());
    }

    #[tokio::test]
    async fn a_removal_is_tried_until_it_is_done_with_one_event_for_all_refusals() {
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
        assert!(matches!(&events[..], [Happening::Problem { .. }, Happening::Removed { generation: 1 }]), "{events:?}");
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
        // Refuses longer than a workspace waits for it.
        let refuse = routing::delete(async move || match seen.get().is_some_and(|shared| shared.exists()) {
            false if count.fetch_add(1, Ordering::Relaxed) > 0 => StatusCode::NO_CONTENT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        });
        let router = Router::new()
            .route("/v1/environments/{id}", refuse)
            .route("/v1/workspaces/{id}/release", routing::post(async || StatusCode::NO_CONTENT));
        let run = run(dir.path(), removed(), router).await;
        let workspace = shared.get_or_init(|| run.daemon.paths("dev7").workspace("w"));
        fs::create_dir_all(workspace).unwrap();
        run.remove().await.unwrap();
        assert!(!workspace.exists());
        assert_eq!(late.load(Ordering::Relaxed), 2);
        let (events, _) = outcome(&run).await;
        assert!(matches!(&events[..], [Happening::Problem { .. }, Happening::Removed { .. }]), "{events:?}");
    }

    #[tokio::test]
    async fn not_found_of_an_incompatible_agent_removes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let info = serde_json::json!({"version": "9", "boot_id": "b", "pid": 1, "set_up": true,
                                      "api": {"min": API.max + 1, "max": API.max + 1}});
        let router = Router::new().route("/v1/agent", routing::get(async move || axum::Json(info)));
        let run = run(dir.path(), removed(), router).await;
        let shared = run.daemon.paths("dev7").workspace("w");
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
        assert!(matches!(&events[..], [Happening::Problem { .. }]), "{events:?}");
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
        // A folder that is not empty is not removed, like one on which something is mounted.
        let below = run.daemon.paths("dev7").workspace("w").join("below");
        fs::create_dir_all(&below).unwrap();
        let told = async {
            loop {
                let (events, row) = outcome(&run).await;
                if let [Happening::Problem { problem }] = &events[..] {
                    return (problem.message.clone(), row);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let (said, row) = tokio::select! {
            removed = run.remove() => panic!("it is there still: {removed:?}"),
            told = told => told,
        };
        assert!(said.starts_with("cannot take /a b out of the machine yet, tried again: "), "{said}");
        assert!(row.is_some() && !said.contains('\n'));
        fs::remove_dir(&below).unwrap();
        run.remove().await.unwrap();
        assert!(outcome(&run).await.1.is_none());
    }

    #[tokio::test]
    async fn an_adopted_machine_whose_agent_refuses_its_setup_does_not_keep_a_workspace() {
        let dir = tempfile::tempdir().unwrap();
        let info = serde_json::json!({"version": "1", "boot_id": "b", "pid": 1, "set_up": true});
        let refuse = async || StatusCode::INTERNAL_SERVER_ERROR;
        let router = Router::new()
            .route("/v1/agent", routing::get(async move || axum::Json(info)))
            .route("/v1/machine", routing::put(refuse))
            .route("/v1/environments/{id}", routing::delete(refuse));
        let run = run(dir.path(), removed(), router).await;
        let shared = run.daemon.paths("dev7").workspace("w");
        fs::create_dir_all(&shared).unwrap();
        // This process, which has the agent, stands for the VMM.
        let vmm = VmmProcess::watch(std::process::id()).unwrap().unwrap();
        let running = MachineRow { desired: Desired::Running, ..machine(7) };
        let write =
            move |db: &Connection| machines::put(db, &running).and_then(|()| machines::set_vmm(db, 7, Some(&vmm.id)));
        run.daemon.write(write).await.unwrap();
        let driver = Driver::new(run.daemon.clone(), 7, Arc::new(Notify::new()), Arc::new(Semaphore::new(1)));
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
        assert!(observe_all(&db, 7, vec![ready.clone()]).unwrap());
        let phases: Vec<_> =
            environments::of_machine(&db, 7).unwrap().into_iter().map(|row| (row.id, row.status.phase)).collect();
        use EnvironmentPhase::*;
        let expected = [("busy", Starting), ("failed", Failed), ("gone", Stopped), ("ready", Ready)];
        assert_eq!(phases, expected.map(|(id, phase)| (id.to_string(), phase)));
        assert!(!observe_all(&db, 7, vec![ready]).unwrap());
    }
}
