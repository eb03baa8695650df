//! `make test`: runs the groups of tests in order, each within its budget. The run ends at the first failure.

mod budget;
pub(crate) mod campaign;
mod emulated;
mod gate;
mod process;
mod progress;
mod sources;

use anyhow::{Context, bail};
use budget::{Budget, FAILS_BEYOND, Verdict};
use process::{cargo, run_to_end};
use rustix::process::getuid;
use serde::Deserialize;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;
use tokio::process::Command;
use tokio::time::{Instant, timeout};

/// The target that `.cargo/config.toml` names.
const RELEASE: &str = "target/x86_64-unknown-linux-gnu/release";

/// The path of this program. The system's answer is not used: building the tests may have replaced the file.
const DRIVER: &str = "target/x86_64-unknown-linux-gnu/release/garret-integration";

/// The groups to run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these groups, in this order
    #[arg(value_enum)]
    groups: Vec<Group>,
    /// Of the end-to-end tests only those with this in their name
    #[arg(long, env = "ONLY")]
    only: Option<String>,
}

/// A group of tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Group {
    /// Static checks
    Lint,
    /// Unit, property and conformance tests
    Unit,
    /// The guest's kernel and images, and the programs
    Artifacts,
    /// Real machines on this host, or on the emulated one
    EndToEnd,
    /// garret's costs in counts, against benches/baseline.json
    Gate,
}

impl Group {
    const ALL: [Self; 5] = [Self::Lint, Self::Unit, Self::Artifacts, Self::EndToEnd, Self::Gate];

    fn name(self) -> &'static str {
        match self {
            Self::Lint => "lint",
            Self::Unit => "unit",
            Self::Artifacts => "artifacts",
            Self::EndToEnd => "end-to-end",
            Self::Gate => "gate",
        }
    }
}

/// Runs the groups. The exit code is 0 if all passed.
pub(crate) async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    enter_repository()?;
    let cold = !Path::new(RELEASE).join("garret").exists() || !guest_is_built();
    let groups = if options.groups.is_empty() { &Group::ALL[..] } else { &options.groups };
    for &group in groups {
        let Budget { cold: when_cold, warm } = Budget::of(group);
        let budget = if cold { when_cold } else { warm };
        let minutes = budget.as_secs() / 60;
        println!("== {} (budget {minutes} min, caches {})", group.name(), if cold { "cold" } else { "warm" });
        let begun = Instant::now();
        let limit = budget * FAILS_BEYOND;
        // A group that was stopped took longer than the limit, so the verdict below reports it.
        let passed = match timeout(limit, run_group(group, options.only.as_deref(), limit)).await {
            Ok(passed) => passed?,
            Err(_) => false,
        };
        let took = begun.elapsed();
        println!("== {}: {} after {} s", group.name(), if passed { "ok" } else { "FAILED" }, took.as_secs());
        match budget::judge(budget, took) {
            Verdict::Within => {}
            Verdict::Over => println!("== {}: over its budget of {minutes} min", group.name()),
            Verdict::Failed => {
                bail!("`{}` took more than {FAILS_BEYOND} times its budget of {minutes} min", group.name())
            }
        }
        if !passed {
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Caches the compiled dependencies of lints and tests. A failure of this does not fail the tests.
async fn keep_dependencies() -> anyhow::Result<bool> {
    let mut keep = Command::new("scripts/dependencies.sh");
    keep.arg("keep");
    if !run_to_end(keep).await? {
        println!("== unit: the compiled dependencies are not cached");
    }
    Ok(true)
}

fn enter_repository() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the crate has no parent folder")?;
    Ok(std::env::set_current_dir(root)?)
}

async fn run_group(group: Group, only: Option<&str>, limit: Duration) -> anyhow::Result<bool> {
    match group {
        Group::Lint => Ok(sources::check()?
            && run_to_end(Command::new("scripts/words.sh")).await?
            && run_to_end(Command::new("codespell")).await?
            && run_to_end(Command::new("scripts/shellcheck.sh")).await?
            && cargo(&["fmt", "--all", "--check"]).await?
            && cargo(&["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"]).await?
            && cargo(&["doc", "--release", "--workspace", "--no-deps", "--document-private-items"]).await?),
        // All tests are compiled at once, because cargo then has work for every processor.
        Group::Unit => Ok(cargo(&["test", "--release", "--workspace", "--no-run"]).await?
            && keep_dependencies().await?
            && cargo(&["test", "--release", "--workspace", "--lib", "--bins"]).await?
            && cargo(&["test", "--release", "--workspace", "--exclude", "garret-integration", "--test", "*"]).await?),
        Group::Artifacts => Ok(cargo(&["build", "--release", "--workspace", "--bins"]).await?
            && run_to_end(Command::new("guest-kernel/build.sh")).await?
            && run_to_end(as_root("guest-image/build.sh")?).await?
            && run_to_end(Command::new("scripts/earlier.sh")).await?
            && run_to_end(as_root("integration/base-image/build.sh")?).await?
            && run_to_end(as_root("integration/base-image/preload.sh")?).await?
            && run_to_end(as_root("integration/host/build.sh")?).await?
            && run_to_end(as_root("integration/emulator/build.sh")?).await?),
        Group::EndToEnd => end_to_end(only, limit).await,
        Group::Gate => gate::run().await,
    }
}

/// Runs the tests of this crate as root on a host with garret: this host if it can run machines, else emulated ones.
async fn end_to_end(only: Option<&str>, limit: Duration) -> anyhow::Result<bool> {
    let mut programs = test_programs().await?;
    if has_virtualization() {
        let mut tests = Command::new("scripts/end-to-end.sh");
        tests.args(programs.extract_if(.., |program| !emulated::always(program))).args(only);
        if !run_to_end(tests).await? {
            return Ok(false);
        }
    } else {
        println!("no hardware virtualization here: machines run in emulated hosts");
    }
    // The limit is a little earlier, so that this process can still keep the logs.
    let deadline = limit.saturating_sub(Duration::from_secs(60));
    emulated::run(&programs, only.unwrap_or_default(), deadline).await
}

/// Whether guests can run natively. The processor's flags decide, not the device node: some hosts imitate the node.
fn has_virtualization() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "svm" || flag == "vmx") && Path::new("/dev/kvm").exists()
}

/// Builds this crate's tests and returns their programs.
async fn test_programs() -> anyhow::Result<Vec<PathBuf>> {
    /// What cargo reports of each artifact.
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
        target: Option<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        kind: Vec<String>,
    }
    let arguments =
        ["test", "--release", "-p", "garret-integration", "--test", "*", "--no-run", "--message-format=json"];
    let output = Command::new("cargo").args(arguments).stderr(Stdio::inherit()).output().await?;
    if !output.status.success() {
        bail!("the end-to-end tests do not build");
    }
    let messages = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Message>();
    let mut programs = Vec::new();
    for message in messages {
        let message = message.context("cargo's messages")?;
        if message.target.is_some_and(|target| target.kind == ["test"]) {
            programs.extend(message.executable);
        }
    }
    if programs.is_empty() {
        bail!("there are no end-to-end tests");
    }
    Ok(programs)
}

/// Whether the cache has a guest kernel. Without one the run is cold.
fn guest_is_built() -> bool {
    let kernels = cache().and_then(|folder| std::fs::read_dir(folder.join("kernel")).ok());
    kernels.into_iter().flatten().flatten().any(|entry| entry.path().join("vmlinux").exists())
}

/// The folder of the cache, as in scripts/lib.sh.
fn cache() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    variable("GARRET_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|folder| folder.join("garret")))
        .or_else(|| variable("HOME").map(|folder| folder.join(".cache/garret")))
}

/// A command that runs as root, with the caller's cache. Creating file systems and starting emulated hosts need root.
fn as_root(program: &str) -> anyhow::Result<Command> {
    if getuid().is_root() {
        return Ok(Command::new(program));
    }
    let assign = |name: &str, value: Option<OsString>| -> anyhow::Result<OsString> {
        let mut assignment = OsString::from(name);
        assignment.push(value.with_context(|| format!("there is no {name}"))?);
        Ok(assignment)
    };
    let mut command = Command::new("sudo");
    command.arg("env").arg(assign("PATH=", std::env::var_os("PATH"))?);
    command.arg(assign("GARRET_CACHE=", cache().map(PathBuf::into_os_string))?).arg(program);
    Ok(command)
}
