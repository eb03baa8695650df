//! The container engine, driven by its command line.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use garret_api::{Code, Problem};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::Semaphore;

use super::engine_call::{Call, Limit, LimitTimer};
use super::entry::disk_full;
use super::inspect::{Container, Image, Listed};
use super::{STOP_SECONDS, names};
use crate::blocking::Blocking;

/// The environment of podman itself; the agent's own environment is not passed to it.
pub(super) const ENV: [(&str, &str); 3] =
    [("HOME", "/root"), ("LANG", "C.UTF-8"), ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")];
/// The most bytes of an error output that are kept: its end.
const STDERR_MAX: usize = 16 * 1024;
/// The largest answer in JSON, in bytes.
const STDOUT_MAX: usize = 16 << 20;

/// The most calls at once for one purpose.
const CALLS_MAX: u32 = 64;

/// Removes containers with their own volumes, after they were stopped.
const REMOVE: [&str; 6] = ["rm", "--force", "--ignore", "--time", STOP_SECONDS, "--volumes"];

/// The podman program and its settings.
#[derive(Clone, Debug)]
pub(super) struct Podman {
    program: PathBuf,
    /// The environment of the engine itself.
    env: BTreeMap<String, String>,
    calls: Arc<Semaphore>,
}

/// A call that ended with a status other than 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", last_line(.stderr).unwrap_or("podman failed and did not say why"))]
pub struct Failure {
    /// The end of what it printed to its standard error.
    pub stderr: String,
}

impl Failure {
    /// The id of a container that has this name and is known only to podman's storage, because podman was killed while
    /// it created the container. Matches the text of podman's error.
    pub fn external_container(&self, name: &str) -> Option<&str> {
        let (_, text) = self.stderr.split_once(&format!("the container name \"{name}\" is already in use by "))?;
        let (id, rest) = text.split_once('.')?;
        rest.contains("by an external entity").then_some(id)
    }

    /// The problem to report for this failure. `message` adds details, except when the disk is full, which always has
    /// the same message.
    pub fn problem(&self, code: Code, message: impl FnOnce() -> String) -> Problem {
        if self.stderr.to_lowercase().contains("no space left on device") {
            return disk_full();
        }
        Problem::new(code, message())
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        failure.problem(Code::Internal, || failure.to_string())
    }
}

impl Podman {
    /// `env` is for the engine itself: proxies and certificates.
    pub(super) fn new(program: impl Into<PathBuf>, env: &BTreeMap<String, String>) -> Self {
        let base = ENV.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let env = base.chain(env.clone()).collect();
        Self { program: program.into(), env, calls: Arc::new(Semaphore::new(CALLS_MAX as usize)) }
    }

    /// Waits until no call runs, including cancelled calls.
    pub(super) async fn idle(&self) {
        drop(self.calls.acquire_many(CALLS_MAX).await);
    }

    /// The same podman with more variables in the engine's own environment.
    pub(super) fn with_env(&self, env: BTreeMap<String, String>) -> Self {
        Self { env: self.env.clone().into_iter().chain(env).collect(), ..self.clone() }
    }

    /// Calls `podman args…` and returns what it printed.
    pub(super) async fn output<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<String, Failure> {
        let mut stdout = Vec::new();
        let mut stderr = Vec::new();
        let mut keep = |from: Stream, bytes: &[u8]| match from {
            Stream::Stdout if stdout.len() < STDOUT_MAX => stdout.extend_from_slice(bytes),
            Stream::Stdout => {}
            Stream::Stderr => keep_end(&mut stderr, bytes, STDERR_MAX),
        };
        let ended_well = self.call(args, &mut keep).await?;
        if ended_well {
            Ok(String::from_utf8_lossy(&stdout).trim_end().to_owned())
        } else {
            Err(Failure { stderr: String::from_utf8_lossy(&stderr).into_owned() })
        }
    }

    /// Calls `podman args…`; `output` receives both output streams as they are printed.
    pub(super) async fn stream<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        mut output: impl FnMut(&[u8]),
    ) -> Result<(), Failure> {
        let mut end = Vec::new();
        let mut pass_on = |_, bytes: &[u8]| {
            keep_end(&mut end, bytes, STDERR_MAX);
            output(bytes);
        };
        let ended_well = self.call(args, &mut pass_on).await?;
        if ended_well { Ok(()) } else { Err(Failure { stderr: String::from_utf8_lossy(&end).into_owned() }) }
    }

    /// Calls `podman args…` and parses the JSON that it prints.
    pub(super) async fn json<T: DeserializeOwned, S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> Result<T, Failure> {
        let text = self.output(args).await?;
        serde_json::from_str(&text)
            .map_err(|error| Failure { stderr: format!("podman's answer is unreadable: {error}") })
    }

    /// A local image, or `None`.
    pub(super) async fn image(&self, name: &str) -> Result<Option<Image>, Failure> {
        match self.json::<Vec<Image>, _>(["image", "inspect", name]).await {
            Ok(images) => Ok(images.into_iter().next()),
            Err(failure) if failure.stderr.contains("image not known") => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// The containers of an environment, stopped ones included, the newest first.
    pub(super) async fn containers(&self, environment: &str) -> Result<Vec<String>, Failure> {
        let all = ["ps", "--all", "--no-trunc", "--filter", &filter(environment), "--format", "json"];
        let mut listed: Vec<Listed> = self.json(all).await?;
        listed.sort_by_key(|container| std::cmp::Reverse(container.created));
        Ok(listed.into_iter().map(|container| container.id).collect())
    }

    /// A container, running or not.
    pub(super) async fn container(&self, id: &str) -> Result<Option<Container>, Failure> {
        Ok(self.json::<Vec<Container>, _>(["container", "inspect", id]).await?.into_iter().next())
    }

    /// Removes the containers that builds started at `since` (seconds since 1970) or later have left. The engine does
    /// not list them, but they hold layers. While another build runs, they may belong to it; a later call removes them
    /// then.
    pub(super) async fn remove_build_containers(&self, since: u64) -> Result<(), Failure> {
        if PROCESS_SCAN.run(another_build_runs).await.unwrap_or(true) {
            return Ok(());
        }
        let known: Vec<Listed> = self.json(["ps", "--all", "--no-trunc", "--format", "json"]).await?;
        let all: Vec<Listed> = self.json(["ps", "--all", "--external", "--no-trunc", "--format", "json"]).await?;
        let left = all.into_iter().filter(|found| found.created >= since && !known.iter().any(|k| k.id == found.id));
        self.remove_containers(left.map(|container| container.id)).await
    }

    /// Removes these containers with their own volumes; running containers are stopped first.
    pub(super) async fn remove_containers(&self, ids: impl IntoIterator<Item = String>) -> Result<(), Failure> {
        let mut ids = ids.into_iter().peekable();
        if ids.peek().is_none() {
            return Ok(());
        }
        self.output(REMOVE.map(str::to_owned).into_iter().chain(ids)).await.map(drop)
    }

    /// Removes all containers of an environment in the same way.
    pub(super) async fn remove_containers_of(&self, environment: &str) -> Result<(), Failure> {
        self.output(REMOVE.into_iter().chain(["--filter", &filter(environment)])).await.map(drop)
    }

    /// Removes images that an earlier build of the environment made and that no container uses. Only images without a
    /// name are removed: an image that the developer made of the container (`podman commit`) has the same label.
    pub(super) async fn prune_images(&self, environment: &str) {
        if let Err(failure) = self.output(["image", "prune", "--force", "--filter", &filter(environment)]).await {
            tracing::warn!("old images could not be removed: {failure}");
        }
    }

    /// Runs until the call ends or reaches its limit; returns true if the status is 0. Dropping the future ends the
    /// call.
    async fn call<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        output: &mut impl FnMut(Stream, &[u8]),
    ) -> Result<bool, Failure> {
        let failed =
            |what: &str, error: std::io::Error| Failure { stderr: format!("podman could not be {what}: {error}") };
        let args: Vec<OsString> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let permit = self.calls.clone().acquire_owned().await.expect("never closed");
        let mut call =
            Call::start(&self.program, &args, &self.env, permit).map_err(|error| failed("started", error))?;
        let mut timer = LimitTimer::new(Limit::of(&args[0]));
        let pid = call.child().id();
        let (mut stdout, mut stderr) = (call.child().stdout.take(), call.child().stderr.take());
        let (mut out, mut err) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
        let status = loop {
            // Wait for the end of both streams, not only of the process, so that no output is lost.
            let open = stdout.is_some() || stderr.is_some();
            tokio::select! {
                length = read(&mut stdout, &mut out), if stdout.is_some() => {
                    timer.progress();
                    output(Stream::Stdout, &out[..length]);
                }
                length = read(&mut stderr, &mut err), if stderr.is_some() => {
                    timer.progress();
                    output(Stream::Stderr, &err[..length]);
                }
                status = call.child().wait(), if !open => break status,
                limit = timer.reached(pid) => {
                    call.end().await;
                    return Err(Failure { stderr: format!("podman {}: {}", args[0].to_string_lossy(), limit.exceeded()) });
                }
            }
        };
        call.end().await;
        Ok(status.map_err(|error| failed("waited for", error))?.success())
    }
}

/// The filter for containers or images of an environment.
fn filter(environment: &str) -> String {
    format!("label={}", names::label(environment))
}

#[derive(Clone, Copy)]
enum Stream {
    Stdout,
    Stderr,
}

/// Returns the number of bytes read. At the end of the stream it returns 0 and sets `stream` to `None`.
async fn read(stream: &mut Option<impl AsyncRead + Unpin>, buffer: &mut [u8]) -> usize {
    let length = match stream {
        Some(open) => open.read(buffer).await.unwrap_or(0),
        None => 0,
    };
    if length == 0 {
        *stream = None;
    }
    length
}

/// Appends `bytes`, and drops the beginning so that at least the last `max` bytes are kept.
pub(super) fn keep_end(kept: &mut Vec<u8>, bytes: &[u8], max: usize) {
    kept.extend_from_slice(bytes);
    // Trim only at `2 * max`, so that each byte is moved at most once.
    if kept.len() > 2 * max {
        kept.drain(..kept.len() - max);
    }
}

fn last_line(text: &str) -> Option<&str> {
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.strip_prefix("Error: ").unwrap_or(line))
}

/// Reading the command lines of all processes: a process that hangs can block the read.
static PROCESS_SCAN: Blocking = Blocking::new("looking for other builds", 4, Duration::from_secs(10));

/// Whether another process builds an image.
fn another_build_runs() -> bool {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let commands = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    commands.into_iter().any(|command| is_build(&command))
}

fn is_build(command: &[u8]) -> bool {
    let mut words = command.split(|byte| *byte == 0);
    let program = words.next().and_then(|program| program.rsplit(|byte| *byte == b'/').next());
    let engine = program.is_some_and(|program| [&b"podman"[..], b"buildah"].contains(&program));
    engine && words.any(|word| [&b"build"[..], b"bud", b"system"].contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_its_last_line() {
        let failure = Failure { stderr: "STEP 1\n\nError: no such thing\n \n".into() };
        assert_eq!(failure.to_string(), "no such thing");
        assert_eq!(Failure { stderr: " \n".into() }.to_string(), "podman failed and did not say why");
    }

    #[test]
    fn a_full_disk_always_has_the_same_message() {
        let failure = Failure { stderr: "Error: writing blob: write /var/tmp/x: no space left on device\n".into() };
        assert_eq!(failure.problem(Code::ImageUnavailable, || unreachable!()), disk_full());
        assert_eq!(
            Failure { stderr: "x".into() }.problem(Code::Internal, || "m".into()),
            Problem::new(Code::Internal, "m")
        );
    }

    #[test]
    fn builds_are_distinguished_from_other_calls() {
        assert!(is_build(b"/usr/bin/podman\0build\0.\0") && is_build(b"buildah\0bud\0"));
        // The service of the API socket may build an image for a client.
        assert!(is_build(b"podman\0system\0service\0"));
        assert!(!is_build(b"podman\0run\0x\0") && !is_build(b"make\0build\0") && !is_build(b""));
    }

    #[test]
    fn the_end_is_kept() {
        let mut kept = Vec::new();
        for byte in 0..100u8 {
            keep_end(&mut kept, &[byte], 10);
        }
        assert!(kept.len() <= 20 && kept.ends_with(&[90, 91, 92, 93, 94, 95, 96, 97, 98, 99]));
    }
}
