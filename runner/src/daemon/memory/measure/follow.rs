//! Follows one guest's memory reports. They are not trusted: they are bounded, rate-limited, and dropped when they are
//! old.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use garret_api::agent::MemoryReport;
use garret_api::client::Lines;
use garret_api::{MachineId, one_line};
use hyper::Method;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::daemon::Daemon;
use crate::daemon::memory::policy::GuestView;
use crate::daemon::memory::report::LogOnChange;

/// The age at which a report is stale and the guest counts as silent.
const STALE_AFTER: Duration = Duration::from_secs(15);
/// How long the agent may take to start its answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// A stream that is silent for longer is dropped; the agent promises a line every 10 s.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// The minimum time between two lines that are read, so that a guest cannot flood the daemon.
const LINE_INTERVAL_MIN: Duration = Duration::from_millis(50);
/// The minimum time between two cycles that one guest can request.
const WAKE_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// The delay before a new stream. It doubles each time, which also bounds how much a guest can make the daemon log …
const RETRY_DELAY: Duration = Duration::from_secs(1);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(10);
/// … until a stream has lasted this long.
const STABLE_AFTER: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Default)]
pub(crate) struct Reports(Arc<Mutex<Received>>);

#[derive(Debug, Default)]
struct Received {
    last: Option<(Instant, MemoryReport)>,
    broken: u64,
}

impl Reports {
    /// The guest's latest report; `None` if it is silent.
    pub(crate) fn fresh(&self) -> Option<GuestView> {
        self.received().last.as_ref().filter(|(at, _)| at.elapsed() <= STALE_AFTER).map(|(_, report)| view(report))
    }

    /// How many processes the guest's kernel has killed for lack of memory, by its last report.
    pub(crate) fn oom_kills(&self) -> u64 {
        self.received().last.as_ref().map_or(0, |(_, report)| report.oom_kills)
    }

    /// How often the stream broke, or had a line that could not be parsed.
    pub(crate) fn broken(&self) -> u64 {
        self.received().broken
    }

    fn received(&self) -> MutexGuard<'_, Received> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn view(report: &MemoryReport) -> GuestView {
    GuestView {
        free: report.free,
        available: report.available,
        cold: report.cold,
        pressure_some: report.pressure.map(|pressure| pressure.some_avg10.clamp(0.0, 100.0)),
        short: report.short,
    }
}

/// Follows the reports until the task is aborted. Calls `connected` whenever a new stream begins.
pub(crate) async fn follow(daemon: Arc<Daemon>, machine: MachineId, reports: Reports, connected: impl Fn()) {
    let problem = LogOnChange::of(format!("memory reports of {machine}"));
    let mut delay = RETRY_DELAY;
    let (mut known, watched_since) = (false, Instant::now());
    // Until then, errors may have the reason that the guest is still booting.
    let boot_time = Duration::from_secs(daemon.config.machine.boot_deadline_s);
    loop {
        // A paused guest does not answer, and connections to it would only accumulate.
        daemon.memory.pauses.wait_until_running(machine).await;
        let began = Instant::now();
        // A new client each time: it accepts only the VMM that is known now, and an adopted one may not be known yet.
        let agent = daemon.agent(machine, DEADLINE);
        let ended = match agent.lines::<MemoryReport, ()>(Method::GET, "/v1/memory", None).await {
            Ok(lines) => {
                known = true;
                connected();
                listen(&daemon.memory.wake, &reports, lines).await
            }
            // The guest is still booting. Its driver watches that.
            Err(_) if !known && watched_since.elapsed() < boot_time => {
                tokio::time::sleep(RETRY_DELAY).await;
                continue;
            }
            Err(error) => error.to_string(),
        };
        if began.elapsed() >= STABLE_AFTER {
            problem.note(None);
            delay = RETRY_DELAY;
        }
        problem.note(Some(one_line(&ended)));
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(RETRY_DELAY_MAX);
    }
}

/// Reads reports until the stream ends, breaks, is silent or has an invalid line. Returns the reason.
async fn listen(wake: &Notify, reports: &Reports, mut lines: Lines<MemoryReport>) -> String {
    let mut woken_at: Option<Instant> = None;
    loop {
        let report = match tokio::time::timeout(SILENCE_MAX, lines.next()).await {
            Ok(Ok(Some(report))) => report,
            Ok(Ok(None)) => return "the agent's answer has ended".into(),
            Ok(Err(error)) => {
                reports.received().broken += 1;
                return error.to_string();
            }
            Err(_) => return format!("nothing for {} s", SILENCE_MAX.as_secs()),
        };
        let short = report.short;
        reports.received().last = Some((Instant::now(), report));
        if short && woken_at.is_none_or(|at| at.elapsed() >= WAKE_INTERVAL_MIN) {
            woken_at = Some(Instant::now());
            wake.notify_one();
        }
        tokio::time::sleep(LINE_INTERVAL_MIN).await;
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use garret_api::client::Client;
    use tokio::net::UnixListener;

    use super::*;
    use crate::accounts::NameService;
    use crate::daemon::testing::{self, id};

    /// What the follower makes of a guest that sends this text.
    async fn receive(said: &'static str) -> (Reports, String, bool) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("agent.sock")).unwrap();
        let router = Router::new().route("/v1/memory", get(async move || said));
        tokio::spawn(axum::serve(listener, router).into_future());
        let (reports, wake) = (Reports::default(), Notify::new());
        let client = Client::unix(dir.path().join("agent.sock"));
        let lines = client.lines::<MemoryReport, ()>(Method::GET, "/v1/memory", None).await.unwrap();
        let ended = listen(&wake, &reports, lines).await;
        let woken = tokio::time::timeout(Duration::ZERO, wake.notified()).await.is_ok();
        (reports, ended, woken)
    }

    const REPORT: &str = r#"{"total":8,"free":1,"available":2,"cold":3,"swap_total":4,"swap_used":5,"#;

    #[tokio::test]
    async fn machine_is_followed_whose_vmm_is_identified_late() {
        let dir = tempfile::tempdir().unwrap();
        let (daemon, _poked) = testing::daemon(dir.path(), NameService::default());
        let report = format!("{REPORT}\"short\":false,\"reclaimed\":0,\"oom_kills\":0}}\n");
        testing::serve_agent(&daemon, id(7), Router::new().route("/v1/memory", get(async move || report)));
        daemon.memory.pauses.started(id(7));
        let reports = Reports::default();
        let (connected, mut connections) = tokio::sync::mpsc::unbounded_channel();
        let follower = follow(daemon.clone(), id(7), reports.clone(), move || connected.send(()).unwrap());
        let follower = tokio::spawn(follower);
        // Its first attempts fail.
        tokio::time::timeout(Duration::from_millis(100), connections.recv()).await.unwrap_err();
        daemon.set_vmm(id(7), Some(std::process::id()));
        tokio::time::timeout(Duration::from_secs(60), connections.recv()).await.expect("it connects").unwrap();
        follower.abort();
    }

    #[tokio::test]
    async fn the_last_report_counts_and_one_that_is_short_wakes() {
        let line = |rest: &str| -> &'static str { format!("{REPORT}{rest}\n").leak() };
        let calm = line(r#""short":false,"reclaimed":0,"oom_kills":0}"#);
        let (reports, ended, woken) = receive(calm).await;
        assert_eq!((ended.as_str(), woken), ("the agent's answer has ended", false));
        assert_eq!(reports.fresh().unwrap().available, 2);
        let pressure = r#"{"some_avg10":1e9,"some_total_us":0,"full_avg10":-1,"full_total_us":0}"#;
        let short = line(&format!(r#""pressure":{pressure},"short":true,"reclaimed":0,"oom_kills":6}}"#));
        let (reports, _, woken) = receive(format!("{calm}{short}").leak()).await;
        assert!(woken);
        let fresh = reports.fresh().unwrap();
        assert_eq!((fresh.pressure_some, fresh.short, reports.oom_kills()), (Some(100.0), true, 6));
    }

    #[tokio::test]
    async fn invalid_report_is_counted_and_ends_the_stream() {
        for said in ["{}\n", "total\n", "{\"total\": -1}\n", "[1e999]\n", "{\"total"] {
            let (reports, _, woken) = receive(said).await;
            assert_eq!((reports.fresh(), reports.broken(), woken), (None, 1, false), "{said}");
        }
    }
}
