//! One call of the engine as a process: its limits and its end.
//!
//! A call is cancelled when its future is dropped or its limit is reached. The engine is asked to end, then killed. The
//! files that it has left in its temporary folder are removed.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until, timeout};

use crate::blocking::Blocking;
use crate::processes::descendants;

/// How long a call may take to end after SIGTERM, before it is killed.
const TERM_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest interval between two checks of a call.
const POLL_MAX: Duration = Duration::from_secs(5);
/// The temporary folder of calls that unpack images: on the data disk, because images are large.
const SCRATCH: &str = "/var/tmp";
const SCRATCH_PREFIX: &str = "garret-podman-";
/// Fewer bytes than this within the whole silence limit do not count as progress: an idle engine also reads and
/// computes a little.
const BYTES_MIN: u64 = 64 * 1024;
const CPU_TICKS_MIN: u64 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    Total(Duration),
    /// Without progress: the call prints nothing, and neither it nor its children read, write or compute.
    Silence(Duration),
}

impl Limit {
    /// The limit for a subcommand of the engine.
    pub(super) fn of(command: &OsStr) -> Self {
        match command.to_str().unwrap_or_default() {
            "pull" | "build" => Self::Silence(Duration::from_secs(600)),
            "run" | "start" => Self::Total(Duration::from_secs(300)),
            _ => Self::Total(Duration::from_secs(100)),
        }
    }

    /// The limit in words, for an error.
    pub(super) fn exceeded(self) -> String {
        match self {
            Self::Total(time) => format!("it took longer than {} s and was ended", time.as_secs()),
            Self::Silence(time) => format!("it made no progress for {} s and was ended", time.as_secs()),
        }
    }
}

pub(super) struct Call {
    /// `None` once the call has been ended.
    running: Option<EngineProcess>,
}

struct EngineProcess {
    child: Child,
    /// Ending the call also ends the processes it started (a build's commands, but not the container that `run` leaves
    /// behind).
    with_children: bool,
    scratch: Option<TempDir>,
    _permit: OwnedSemaphorePermit,
}

impl Call {
    /// Starts `program args…` with this environment and nothing else.
    pub(super) fn start(
        program: &Path,
        args: &[OsString],
        env: &BTreeMap<String, String>,
        permit: OwnedSemaphorePermit,
    ) -> std::io::Result<Self> {
        let downloads = matches!(Limit::of(&args[0]), Limit::Silence(_));
        let scratch = downloads.then(|| tempfile::Builder::new().prefix(SCRATCH_PREFIX).tempdir_in(SCRATCH));
        let scratch = scratch.transpose()?;
        let mut command = Command::new(program);
        crate::exec::allow_oom_kill(&mut command);
        crate::exec::end_with_agent(&mut command);
        command.args(args).env_clear().envs(env);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(scratch) = &scratch {
            command.env("TMPDIR", scratch.path());
        }
        let child = command.spawn()?;
        Ok(Self { running: Some(EngineProcess { child, with_children: downloads, scratch, _permit: permit }) })
    }

    pub(super) fn child(&mut self) -> &mut Child {
        &mut self.running.as_mut().expect("only its end takes it").child
    }

    /// Asks the call to end, and kills it if it does not end in time.
    pub(super) async fn end(&mut self) {
        if let Some(running) = self.running.take() {
            running.end().await;
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let Some(running) = self.running.take() else { return };
        // Without a runtime the agent itself is ending, and the call ends with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(running.end());
        }
    }
}

impl EngineProcess {
    async fn end(mut self) {
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id as i32)) {
            let children = if self.with_children { descendants(pid.as_raw_nonzero().get()) } else { Vec::new() };
            let children: Vec<_> = children
                .into_iter()
                .filter_map(|child| rustix::process::pidfd_open(Pid::from_raw(child)?, PidfdFlags::empty()).ok())
                .collect();
            // The process has not been reaped yet, so no other process has its number.
            let _ = rustix::process::kill_process(pid, Signal::TERM);
            if timeout(TERM_TIMEOUT, self.child.wait()).await.is_err() {
                let _ = self.child.kill().await;
            }
            for child in children {
                let _ = rustix::process::pidfd_send_signal(&child, Signal::KILL);
            }
        }
        if let Some(scratch) = self.scratch.take() {
            let _ = tokio::task::spawn_blocking(move || drop(scratch)).await;
        }
    }
}

/// Removes the files left by the calls of an agent that was killed.
pub(super) fn clean_up() {
    let entries = std::fs::read_dir(SCRATCH).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(SCRATCH_PREFIX.as_bytes())) {
        let _ = std::fs::remove_dir_all(entry.path());
    }
}

/// Reading the counters of processes: a process that hangs can block the read.
static MEASURE: Blocking = Blocking::new("measuring the engine", 16, Duration::from_secs(10));

/// Checks a running call until its limit is reached.
pub(super) struct LimitTimer {
    limit: Limit,
    /// Time since the start, or since the last progress. It counts checks, so that the pause of a machine does not
    /// count as waiting.
    spent: Duration,
    next: Instant,
    seen: Activity,
}

impl LimitTimer {
    pub(super) fn new(limit: Limit) -> Self {
        Self { limit, spent: Duration::ZERO, next: Instant::now() + pause(limit), seen: Activity::default() }
    }

    /// Notes that the call has printed something.
    pub(super) fn progress(&mut self) {
        if matches!(self.limit, Limit::Silence(_)) {
            self.spent = Duration::ZERO;
        }
    }

    /// Returns when the limit is reached. Cancel-safe.
    pub(super) async fn reached(&mut self, pid: Option<u32>) -> Limit {
        loop {
            sleep_until(self.next).await;
            self.next = Instant::now() + pause(self.limit);
            self.spent += pause(self.limit);
            let allowed = match self.limit {
                Limit::Total(time) => time,
                Limit::Silence(time) => {
                    let now = match pid {
                        Some(pid) => MEASURE.run(move || Activity::of_tree(pid as i32)).await.unwrap_or(self.seen),
                        None => self.seen,
                    };
                    if now.differs(self.seen) {
                        self.seen = now;
                        self.spent = Duration::ZERO;
                    }
                    time
                }
            };
            if self.spent >= allowed {
                return self.limit;
            }
        }
    }
}

fn pause(limit: Limit) -> Duration {
    let (Limit::Total(time) | Limit::Silence(time)) = limit;
    POLL_MAX.min(time / 4)
}

/// The work that a process and its descendants have done so far.
#[derive(Clone, Copy, Debug, Default)]
struct Activity {
    bytes: u64,
    cpu_ticks: u64,
}

impl Activity {
    fn of_tree(pid: i32) -> Self {
        let mut sum = Self::default();
        for pid in descendants(pid).into_iter().chain([pid]) {
            let folder = PathBuf::from(format!("/proc/{pid}"));
            let io = std::fs::read_to_string(folder.join("io")).unwrap_or_default();
            let stat = std::fs::read_to_string(folder.join("stat")).unwrap_or_default();
            sum.bytes += bytes(&io);
            sum.cpu_ticks += cpu_ticks(&stat);
        }
        sum
    }

    /// A sum may also shrink when a child ends: that counts as progress too.
    fn differs(self, before: Self) -> bool {
        self.bytes.abs_diff(before.bytes) >= BYTES_MIN || self.cpu_ticks.abs_diff(before.cpu_ticks) >= CPU_TICKS_MIN
    }
}

/// `rchar` and `wchar` of `/proc/<pid>/io`: these include sockets.
fn bytes(io: &str) -> u64 {
    let fields = io.lines().filter_map(|line| line.strip_prefix("rchar: ").or_else(|| line.strip_prefix("wchar: ")));
    fields.filter_map(|number| number.trim().parse::<u64>().ok()).sum()
}

/// `utime` and `stime` of `/proc/<pid>/stat`, the 14th and 15th field; the 2nd, a name in parentheses, may hold
/// anything.
fn cpu_ticks(stat: &str) -> u64 {
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().skip(11).take(2).filter_map(|number| number.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn downloads_and_builds_may_take_long_but_not_in_silence() {
        for command in ["pull", "build"] {
            assert!(matches!(Limit::of(OsStr::new(command)), Limit::Silence(_)), "{command}");
        }
        for command in ["run", "start", "stop", "rm", "ps", "inspect", "logs", "image", "volume"] {
            assert!(matches!(Limit::of(OsStr::new(command)), Limit::Total(_)), "{command}");
        }
    }

    #[test]
    fn figures_of_a_process() {
        assert_eq!(bytes("rchar: 5\nwchar: 7\nsyscr: 1\nread_bytes: 9\n"), 12);
        assert_eq!(cpu_ticks("7 (a) b) S 1 2 3 4 5 6 7 8 9 10 30 12 13 14"), 42);
        assert_eq!(cpu_ticks(""), 0);
        let still = Activity { bytes: 10, cpu_ticks: 5 };
        assert!(!Activity { bytes: 11, cpu_ticks: 6 }.differs(still));
        assert!(Activity { bytes: 10 + BYTES_MIN, cpu_ticks: 5 }.differs(still));
        assert!(still.differs(Activity { bytes: 10, cpu_ticks: 5 + CPU_TICKS_MIN }));
    }

    #[tokio::test]
    async fn a_process_that_computes_makes_progress() {
        let mut busy = Command::new("sh").args(["-c", "while :; do :; done"]).kill_on_drop(true).spawn().unwrap();
        let pid = busy.id().unwrap() as i32;
        let before = Activity::of_tree(pid);
        while !Activity::of_tree(pid).differs(before) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        busy.kill().await.unwrap();
    }

    #[tokio::test]
    async fn a_process_that_does_nothing_reaches_its_limit() {
        let mut idle = Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
        let limit = Limit::Silence(Duration::from_millis(200));
        assert_eq!(LimitTimer::new(limit).reached(idle.id()).await, limit);
        idle.kill().await.unwrap();
    }
}
