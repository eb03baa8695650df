//! Work on one environment: up, stop, remove. Each is a task of its own beside the machine's driver.
//!
//! Everything the agent reports comes from the guest: it is clipped, counted and rate-limited before it is stored.

use std::sync::Arc;
use std::time::Duration;

use garret_api::agent::{API, AgentInfo, EnvironmentPhase, EnvironmentSpec, EnvironmentStatus, GENERATIONS, Progress};
use garret_api::client::{Client, Error, Lines};
use garret_api::runner::{Desired, EventKind};
use garret_api::{Code, MachineId, Problem, one_line};
use hyper::Method;
use tokio::time::{Instant, timeout};

use super::backoff::backoff;
use super::liveness::wait_while_alive;
use crate::daemon::Daemon;
use crate::daemon::state::{EnvironmentRow, StoreError, WriteTx, environments, events};
use crate::daemon::workspace::Revoked;
use crate::host;

/// How long the agent may take to start an answer; stopping a container may take ten seconds of that.
const DEADLINE: Duration = Duration::from_secs(120);
/// A step may print nothing for hours. After this much silence, the agent is asked whether it is still there.
const SILENCE: Duration = Duration::from_secs(60);
/// How often a run is resumed after its connection broke (the agent was restarted).
const TRIES_MAX: u32 = 5;
const RETRY: Duration = Duration::from_secs(1);
/// The longest pause before an agent that refuses or is silent is asked again to stop or remove something.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);
/// The most output of a step in one event, in bytes of the stored JSON text.
const OUTPUT_MAX: usize = 32 * 1024;
/// Output is merged for this long, which bounds how much a guest can make the daemon write per second.
const MERGE_TIME: Duration = Duration::from_millis(30);
/// The most events other than output a run may have.
const STEPS_MAX: u32 = 2000;
/// The longest name or value from the agent, in characters.
const FIELD_MAX: usize = 4096;

/// One environment.
pub(super) struct EnvironmentRun {
    pub(super) daemon: Arc<Daemon>,
    /// The developer's uid.
    pub(super) owner: u32,
    pub(super) row: EnvironmentRow,
}

/// How following the agent ended.
enum FollowResult {
    /// With this last line.
    Ended(Progress),
    /// With an unknown end: the connection broke.
    Lost(Error),
}

impl EnvironmentRun {
    /// Brings the environment up and stores every step.
    pub(super) async fn bring_up(&self) -> Result<(), StoreError> {
        let mut spec = self.spec();
        for attempt in 1..=TRIES_MAX {
            match self.attempt(&mut spec).await? {
                FollowResult::Ended(progress) => return finish(&self.daemon, &self.row, progress).await,
                FollowResult::Lost(error) if attempt == TRIES_MAX => {
                    let problem = Problem::new(Code::Unavailable, format!("the agent is lost: {error}")).clipped();
                    return finish(&self.daemon, &self.row, failed("agent", problem)).await;
                }
                FollowResult::Lost(error) => {
                    tracing::warn!("the agent's answer broke off: {error}");
                    tokio::time::sleep(RETRY).await;
                    // An agent that does not count runs may have started this one: a second removal would delete the
                    // result of the first. Other agents rebuild once per generation.
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

    /// One try. The agent may have been replaced since the last try, so its capabilities are read each time.
    async fn attempt(&self, spec: &mut EnvironmentSpec) -> Result<FollowResult, StoreError> {
        let info = match self.info().await {
            Ok(info) => info,
            Err(error) => return Ok(FollowResult::Lost(error)),
        };
        spec.generation = if info.can(GENERATIONS) { self.row.generation } else { 0 };
        self.follow(spec).await
    }

    async fn follow(&self, spec: &EnvironmentSpec) -> Result<FollowResult, StoreError> {
        let lines = match self.agent().lines::<Progress, _>(Method::PUT, &self.path(""), Some(spec)).await {
            Ok(lines) => lines,
            Err(Error::Problem { problem, .. }) => {
                return Ok(FollowResult::Ended(failed("environment", problem.clipped())));
            }
            Err(error) => return Ok(FollowResult::Lost(error)),
        };
        let mut steps = 0;
        let mut pending = None;
        let mut lines = MergedLines { lines, pending: &mut pending };
        loop {
            let next = match wait_while_alive(lines.next(), SILENCE, || self.check_agent()).await {
                Ok(next) => next,
                Err(error) => return Ok(FollowResult::Lost(error)),
            };
            match next {
                Ok(Some(last @ (Progress::Failed { .. } | Progress::Ready { .. }))) => {
                    return Ok(FollowResult::Ended(last));
                }
                Ok(Some(progress)) => {
                    steps += u32::from(!matches!(progress, Progress::Output { .. }));
                    if steps > STEPS_MAX {
                        let problem =
                            Problem::new(Code::Internal, format!("the agent reports more than {STEPS_MAX} steps"));
                        return Ok(FollowResult::Ended(failed("agent", problem)));
                    }
                    self.store(progress).await?;
                }
                Ok(None) => {
                    let detail = "the agent's answer has no end".to_string();
                    return Ok(FollowResult::Lost(Error::Broken { target: self.row.machine.to_string(), detail }));
                }
                Err(error) => return Ok(FollowResult::Lost(error)),
            }
        }
    }

    async fn store(&self, progress: Progress) -> Result<(), StoreError> {
        let row = self.row.clone();
        self.daemon.write(move |db| environments::add_progress(db, &row, progress)).await
    }

    /// Stops the container and keeps it.
    pub(super) async fn stop(&self) -> Result<(), StoreError> {
        if let Err(problem) = self.stop_container().await? {
            return finish(&self.daemon, &self.row, failed("stop", problem)).await;
        }
        let status = EnvironmentStatus { phase: EnvironmentPhase::Stopped, problem: None, ..self.row.status.clone() };
        let row = EnvironmentRow { status, rebuild: false, ..self.row.clone() };
        let last = EventKind::Stopped { generation: row.generation };
        self.daemon.write(move |db| environments::end_run(db, &row, &last).map(drop)).await
    }

    /// Removes the container, and takes the workspace out of the machine.
    pub(super) async fn remove(&self) -> Result<(), StoreError> {
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

    /// Asks the agent to remove the container and to release the workspace, until it has done both.
    async fn release(&self, refusals: &mut u32) -> Result<(), StoreError> {
        self.retry_until_done("remove", Method::DELETE, &self.path(""), refusals).await?;
        self.retry_until_done("release", Method::POST, &format!("/v1/workspaces/{}/release", self.row.id), refusals)
            .await
    }

    /// Takes the workspace out of the machine, and reports if the machine still uses it. Retries until it is unmounted.
    async fn revoke_workspace(&self) -> Result<(), StoreError> {
        let paths = self.daemon.paths(self.row.machine);
        // The developer chooses the path. It may have line breaks, and it is written to the daemon's log.
        let workspace = one_line(&self.row.workspace.display().to_string());
        let mut failures = 0;
        let revoked = loop {
            let vmm = self.daemon.vmm_pid(self.row.machine);
            match self.daemon.workspaces.revoke(self.owner, &paths, &self.row.id, vmm).await {
                Ok(revoked) => break revoked,
                Err(error) => {
                    let said = format!("cannot take {workspace} out of the machine yet; trying again: {error:#}");
                    self.failed_try(&mut failures, Problem::new(Code::WorkspaceHeld, said)).await?;
                }
            }
        };
        let unused = matches!(revoked, Revoked::Unused);
        let what = match revoked {
            Revoked::Unused => None,
            Revoked::Held(files) => Some(format!("the machine still has {files} files of {workspace} open")),
            Revoked::Unknown(error) => {
                Some(format!("cannot find out whether the machine still has files of {workspace} open: {error}"))
            }
        };
        if let Some(what) = what {
            let problem = Problem::new(Code::WorkspaceHeld, format!("{what}; it can use them until `garret stop`"));
            tracing::warn!("{problem}");
            self.report(problem).await?;
        }
        // Otherwise a later removal of the same folder must find those files too. All notes are removed when the
        // machine ends.
        if unused {
            host::forget_revocation(&paths, &self.row.id);
        }
        Ok(())
    }

    /// Asks the agent to stop the container. The timeout is that of stopping a whole machine.
    pub(super) async fn stop_container(&self) -> Result<Result<(), Problem>, StoreError> {
        let deadline = Duration::from_secs(self.daemon.config.machine.stop_deadline_s);
        match timeout(deadline, self.retry_until_done("stop", Method::POST, &self.path("/stop"), &mut 0)).await {
            Ok(done) => done.map(Ok),
            Err(_) => {
                let waited = deadline.as_secs();
                let said = format!(
                    "the agent did not stop the container within {waited} s: `garret stop` stops the whole machine"
                );
                Ok(Err(Problem::new(Code::Unavailable, said)))
            }
        }
    }

    /// Repeats the request until the agent has carried it out. A 404 means that there is nothing to do. `refusals`
    /// counts the refusals of the run.
    async fn retry_until_done(
        &self,
        what: &str,
        method: Method,
        path: &str,
        refusals: &mut u32,
    ) -> Result<(), StoreError> {
        let agent = self.agent();
        loop {
            let error = match agent.send::<()>(method.clone(), path, None).await {
                Ok(()) => return Ok(()),
                Err(error) if error.status() == Some(404) && self.agent_is_compatible().await => return Ok(()),
                Err(error) => error,
            };
            let said = format!("cannot {what} {} yet; trying again: {error}", self.row.id);
            self.failed_try(refusals, Problem::new(Code::Unavailable, said).clipped()).await?;
        }
    }

    /// An agent of another API version answers 404 to a call that it does not know.
    async fn agent_is_compatible(&self) -> bool {
        self.info().await.is_ok_and(|info| API.overlaps(info.api))
    }

    /// Counts a failed try and pauses; the pause grows. Only the first failure becomes an event, because the run's last
    /// event reports the result.
    async fn failed_try(&self, failures: &mut u32, problem: Problem) -> Result<(), StoreError> {
        *failures += 1;
        if *failures == 1 {
            tracing::warn!("{problem}");
            self.report(problem).await?;
        }
        tokio::time::sleep(backoff(*failures, RETRY_PAUSE_MAX)).await;
        Ok(())
    }

    async fn report(&self, problem: Problem) -> Result<(), StoreError> {
        let (machine, id) = (self.row.machine, self.row.id.clone());
        self.daemon.write(move |db| events::add(db, machine, Some(&id), &EventKind::Problem { problem })).await
    }

    /// Queries the agent. A failed connection is no error: a VMM that ends is noticed elsewhere.
    ///
    /// # Errors
    /// The agent does not answer.
    async fn check_agent(&self) -> Result<(), Error> {
        match self.info().await {
            Ok(_) | Err(Error::Connect { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn info(&self) -> Result<AgentInfo, Error> {
        self.agent().get("/v1/agent").await
    }

    fn agent(&self) -> Client {
        self.daemon.agent(self.row.machine, DEADLINE)
    }

    pub(super) fn path(&self, below: &str) -> String {
        format!("/v1/environments/{}{below}", self.row.id)
    }
}

/// The agent's lines, with the output of a step merged into larger pieces.
struct MergedLines<'a> {
    lines: Lines<Progress>,
    /// A line that was read during merging and is not part of the output.
    pending: &'a mut Option<Progress>,
}

impl MergedLines<'_> {
    async fn next(&mut self) -> garret_api::client::Result<Option<Progress>> {
        let first = match self.pending.take() {
            Some(progress) => Some(progress),
            None => self.lines.next().await?.map(sanitize),
        };
        let Some(Progress::Output { step, mut text }) = first else { return Ok(first) };
        let until = Instant::now() + MERGE_TIME;
        let mut length = json_length(&text);
        loop {
            match tokio::time::timeout_at(until, self.lines.next()).await {
                Ok(Ok(Some(next))) => match sanitize(next) {
                    Progress::Output { step: same, text: more }
                        if same == step && length + json_length(&more) <= OUTPUT_MAX =>
                    {
                        length += json_length(&more);
                        text.push_str(&more);
                    }
                    // The piece is full early, or the line is of another step: a guest that prints faster than this
                    // waits.
                    other @ Progress::Output { .. } => {
                        *self.pending = Some(other);
                        break;
                    }
                    other => {
                        *self.pending = Some(other);
                        return Ok(Some(Progress::Output { step, text }));
                    }
                },
                // The next call returns the end or the error again.
                Ok(_) | Err(_) => return Ok(Some(Progress::Output { step, text })),
            }
        }
        tokio::time::sleep_until(until).await;
        Ok(Some(Progress::Output { step, text }))
    }
}

/// The last step of a run, and the status that follows from it, in one.
pub(super) async fn finish(daemon: &Daemon, row: &EnvironmentRow, last: Progress) -> Result<(), StoreError> {
    let status = match &last {
        Progress::Ready { environment } => EnvironmentStatus { id: row.id.clone(), ..environment.clone() },
        Progress::Failed { step, problem } => EnvironmentStatus {
            phase: EnvironmentPhase::Failed,
            problem: Some(Problem::new(problem.code, format!("{step}: {}", problem.detail))),
            ..row.status.clone()
        },
        // No other kind of progress ends a run.
        _ => return Ok(()),
    };
    let row = EnvironmentRow { status, rebuild: false, ..row.clone() };
    let last = EventKind::Environment { generation: row.generation, progress: last };
    daemon.write(move |db| environments::end_run(db, &row, &last).map(drop)).await
}

/// Stores what the agent reports about settled environments; returns whether anything has changed.
pub(super) fn observe_all(
    db: &WriteTx<'_>,
    machine: MachineId,
    reported: Vec<EnvironmentStatus>,
) -> rusqlite::Result<bool> {
    let mut changed = false;
    for row in environments::of_machine(db, machine)? {
        if !row.settled() || row.removed || row.desired != Desired::Running {
            continue;
        }
        let status = match reported.iter().find(|status| status.id == row.id) {
            Some(status) => sanitize_status(status.clone()),
            None => EnvironmentStatus { phase: EnvironmentPhase::Stopped, container_id: None, ..row.status.clone() },
        };
        // A failed run stays failed and keeps its reason until a client requests another.
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

/// Clips the agent's report.
fn sanitize(progress: Progress) -> Progress {
    match progress {
        Progress::Started { step } => Progress::Started { step: one_line(&step) },
        Progress::Output { step, text } => Progress::Output { step: one_line(&step), text: truncate_output(text) },
        Progress::Finished { step, ms } => Progress::Finished { step: one_line(&step), ms },
        Progress::Failed { step, problem } => Progress::Failed { step: one_line(&step), problem: problem.clipped() },
        Progress::Ready { environment } => Progress::Ready { environment: sanitize_status(environment) },
        Progress::Unknown => Progress::Unknown,
    }
}

fn sanitize_status(status: EnvironmentStatus) -> EnvironmentStatus {
    let word = |word: Option<String>| word.map(|word| truncate(word, FIELD_MAX));
    EnvironmentStatus {
        id: truncate(status.id, FIELD_MAX),
        phase: status.phase,
        container_id: word(status.container_id),
        remote_user: word(status.remote_user),
        workspace_folder: word(status.workspace_folder),
        problem: status.problem.map(Problem::clipped),
    }
}

/// Clips text to the most output that one event may hold.
fn truncate_output(mut text: String) -> String {
    let mut length = 0;
    let end = text.char_indices().find_map(|(at, char)| {
        length += json_bytes(char);
        (length > OUTPUT_MAX).then_some(at)
    });
    text.truncate(end.unwrap_or(text.len()));
    text
}

/// The length of the text in JSON, in bytes.
fn json_length(text: &str) -> usize {
    text.chars().map(json_bytes).sum()
}

/// The length of a character in JSON (RFC 8259, 7), in bytes.
fn json_bytes(char: char) -> usize {
    match char {
        '"' | '\\' | '\u{8}' | '\t' | '\n' | '\u{c}' | '\r' => 2,
        '\0'..='\u{1f}' => 6,
        _ => char.len_utf8(),
    }
}

/// At most `max` bytes, whole characters.
fn truncate(mut text: String, max: usize) -> String {
    let end = (0..=max.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests;
