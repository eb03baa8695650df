//! The end-to-end tests on emulated hosts. A host has one processor, so several run at the same time. They take the
//! tests from one list, one by one.

use super::progress;
use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::timeout;

/// The most hosts at a time. Each has 8 GiB, and more would exceed a developer's machine.
const HOSTS_AT_MOST: usize = 2;
/// The folder of the lists and of each host's logs. Each host has a folder with its number.
const FOLDER: &str = "target/end-to-end";

/// The time from the request to end a host until it has ended.
const KEEPS_LOGS_WITHIN: Duration = Duration::from_secs(30);

/// The prefix of the memory tests' program. These tests need a host with too little memory, so they run on an emulated
/// host of their own everywhere.
const MEMORY_TESTS: &str = "memory-";
/// Part of the names of tests that take only seconds.
const SHORT: &str = " bad_input::";
/// The kill campaign's program.
pub(super) const CAMPAIGN: &str = "campaign-";

/// The size of a host, in MiB, and whether it starts with prepared files: the larger images in the machines' disks, and
/// an earlier garret.
#[derive(Clone, Copy)]
struct Size {
    memory: u32,
    swap: u32,
    preloaded: bool,
}

/// For most tests.
const LARGE: Size = Size { memory: 8192, swap: 4096, preloaded: true };
/// For the tests of memory.
const SMALL: Size = Size { memory: 2048, swap: 8192, preloaded: false };

/// Whether a program's tests run on emulated hosts even where machines can run natively.
pub(super) fn always(program: &Path) -> bool {
    program.file_name().is_some_and(|name| name.to_string_lossy().starts_with(MEMORY_TESTS))
}

/// Runs the tests with `only` in their name. Returns whether all passed.
///
/// # Errors
/// A host did not start, or ended during the tests, twice.
pub(super) async fn run(programs: &[PathBuf], only: &str, deadline: Duration) -> anyhow::Result<bool> {
    let mut tests = Vec::new();
    for program in programs {
        let name = program.file_name().and_then(|name| name.to_str()).context("a test program without a name")?;
        tests.extend(list(program, only).await?.into_iter().map(|test| format!("{name} {test}")));
    }
    // The campaign comes first. The tests of bad input are short and come last, so that the hosts end at about the same
    // time. The others are sorted by name, which puts the longest, `acknowledged`, first.
    tests.sort_by_cached_key(|test| (!test.starts_with(CAMPAIGN), test.contains(SHORT), test.clone()));
    if tests.is_empty() && programs.iter().all(|program| always(program)) {
        return Ok(true); // `only` selected tests that ran natively
    }
    if tests.is_empty() {
        bail!("no end-to-end test for an emulated host has `{only}` in its name");
    }
    let (memory, others): (Vec<_>, Vec<_>) = tests.into_iter().partition(|test| test.starts_with(MEMORY_TESTS));
    let memory = Share::new("memory", memory, SMALL)?;
    let others = Share::new("list", others, LARGE)?;
    let runs = (0..hosts()).map(async |host| {
        // The first host runs the tests of memory alone, and then takes part in the others.
        let first = host > 0 || memory.take_part("memory", programs, deadline).await?;
        anyhow::Ok(others.take_part(&host.to_string(), programs, deadline).await? && first)
    });
    let passed = futures_util::future::try_join_all(runs).await?.into_iter().all(|passed| passed);
    let left = [memory.left(), others.left()].concat();
    if !left.is_empty() {
        bail!("no host ran {}", left.join(", "));
    }
    Ok(passed)
}

/// How many hosts run at the same time.
pub(super) fn hosts() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(HOSTS_AT_MOST)
}

/// Tests that several hosts of one size share.
struct Share {
    tests: Vec<String>,
    list: List,
    size: Size,
}

impl Share {
    fn new(name: &str, tests: Vec<String>, size: Size) -> anyhow::Result<Self> {
        Ok(Self { list: List::new(&Path::new(FOLDER).join(name), &tests)?, tests, size })
    }

    /// Runs tests on one host. If the host itself fails, a second host continues. Tests that failed are not run again.
    async fn take_part(&self, host: &str, programs: &[PathBuf], deadline: Duration) -> anyhow::Result<bool> {
        if self.left().is_empty() {
            return Ok(true);
        }
        for _ in 0..2 {
            match self.attempt(host, programs, deadline).await? {
                Some(0) => return Ok(true),
                Some(status) if status != i32::from(crate::host::STATUS_HOST_FAILED) => return Ok(false),
                _ => println!("host {host} failed: its logs are in {FOLDER}/{host}"),
            }
            self.list.give_back(host)?;
        }
        bail!("an emulated host failed twice")
    }

    /// Runs one host's command to its end, and returns its status.
    async fn attempt(&self, host: &str, programs: &[PathBuf], deadline: Duration) -> anyhow::Result<Option<i32>> {
        let mut arguments = vec!["--logs".into(), Path::new(FOLDER).join(host).into_os_string()];
        arguments.extend(["--share".into(), self.list.0.clone().into_os_string()]);
        if self.size.preloaded {
            arguments.extend(["--preloaded".into(), "--earlier".into()]);
        }
        for (option, mib) in [("--memory", self.size.memory), ("--swap", self.size.swap)] {
            arguments.extend([option.into(), mib.to_string().into()]);
        }
        // This driver is one of the programs: the tests of memory run its `load` in guests.
        let programs = programs.iter().map(PathBuf::as_path).chain([Path::new(super::DRIVER)]);
        arguments.extend(programs.flat_map(|program| ["--program".into(), program.as_os_str().to_owned()]));
        run_host(&arguments, deadline, &List::script(host, "/run/host/programs")).await
    }

    fn left(&self) -> Vec<&str> {
        self.list.not_done(&self.tests)
    }
}

/// The names of a test program's tests.
async fn list(program: &Path, only: &str) -> anyhow::Result<Vec<String>> {
    let output = Command::new(program).args(["--list", "--format=terse", only]).output().await?;
    if !output.status.success() {
        bail!("{} does not list its tests", program.display());
    }
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// A folder that all hosts share. `tests` is the list. A link in `taken` records which host took a test. A file in
/// `done` records that the test has ended.
struct List(PathBuf);

impl List {
    fn new(folder: &Path, tests: &[String]) -> anyhow::Result<Self> {
        let list = Self(folder.to_owned());
        if list.0.exists() {
            fs::remove_dir_all(&list.0)?;
        }
        for name in ["taken", "done"] {
            fs::create_dir_all(list.0.join(name))?;
        }
        fs::write(list.0.join("tests"), tests.iter().map(|test| format!("{test}\n")).collect::<String>())?;
        Ok(list)
    }

    /// The script of a host in this folder. It takes and runs tests until none is left. Creating a link is atomic.
    fn script(host: &str, programs: &str) -> String {
        format!(
            "status=0; while read -r program test <&3; do \
             ln -s {host} \"taken/$program.$test\" 2>/dev/null || continue; \
             {programs}/$program --test-threads=1 --exact $test || status=$?; \
             touch \"done/$program.$test\"; done 3<tests; exit $status"
        )
    }

    /// Tests that have not ended. A link that could not be created looks like one that exists, so a host may take no
    /// test without an error.
    fn not_done<'a>(&self, tests: &'a [String]) -> Vec<&'a str> {
        let done = |test: &str| self.0.join("done").join(test.replacen(' ', ".", 1)).exists();
        tests.iter().map(String::as_str).filter(|test| !done(test)).collect()
    }

    /// Returns the tests that a host took and did not end to the list.
    fn give_back(&self, host: &str) -> std::io::Result<()> {
        for entry in fs::read_dir(self.0.join("taken"))? {
            let entry = entry?;
            let done = self.0.join("done").join(entry.file_name()).exists();
            if !done && fs::read_link(entry.path())? == Path::new(host) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Runs this program's own `host` command and prints its output by lines, so that lines of two hosts do not mix. If a
/// host makes no progress, it is ended and reported as a failure of the host, not of a test.
pub(super) async fn run_host(arguments: &[OsString], deadline: Duration, command: &str) -> anyhow::Result<Option<i32>> {
    // The kernel kills the command when this thread ends for any reason. The emulator ends with the command in the same
    // way.
    let driver = super::as_root(super::DRIVER)?;
    let mut child = Command::new("setpriv");
    child.args(["--pdeathsig", "KILL"]).arg(driver.as_std().get_program()).args(driver.as_std().get_args());
    child.arg("host").args(arguments).arg("--deadline").arg(deadline.as_secs().to_string()).arg("--").arg(command);
    child.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = child.spawn().context("cannot run the emulated host")?;
    if let Some(status) = progress::follow(&mut child).await? {
        return Ok(status.code());
    }
    // The host copies its logs before it ends.
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
        kill_process(pid, Signal::TERM)?;
    }
    // A child that does not end is killed when it is dropped.
    let _ = timeout(KEEPS_LOGS_WITHIN, child.wait()).await;
    Ok(Some(i32::from(crate::host::STATUS_HOST_FAILED)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use garret_testing::program::write;

    #[test]
    fn hosts_share_out_tests_and_finish_those_of_a_failed_host() {
        let folder = tempfile::tempdir().unwrap();
        // The arguments are those of a test program; the test named 3 fails.
        let program = "#!/bin/sh\nsleep 0.01\necho $3 >> ../ran\n[ $3 != m::3 ]\n";
        write(&folder.path().join("program"), program);
        let tests: Vec<_> = (0..20).map(|test| format!("program m::{test}")).collect();
        let list = List::new(&folder.path().join("list"), &tests).unwrap();
        // Host 0 failed earlier: it ended one test and did not end the other. Host 1 still runs one.
        std::os::unix::fs::symlink("0", list.0.join("taken/program.m::18")).unwrap();
        std::os::unix::fs::symlink("0", list.0.join("taken/program.m::19")).unwrap();
        std::os::unix::fs::symlink("1", list.0.join("taken/program.m::17")).unwrap();
        fs::write(list.0.join("done/program.m::19"), "").unwrap();
        list.give_back("0").unwrap();
        let host = |number: &str| {
            let script = List::script(number, folder.path().to_str().unwrap());
            std::process::Command::new("bash").arg("-c").arg(script).current_dir(&list.0).spawn().unwrap()
        };
        let mut hosts = [host("0"), host("1")];
        let statuses: Vec<_> = hosts.iter_mut().map(|host| host.wait().unwrap().code().unwrap()).collect();
        assert_eq!(statuses.iter().sum::<i32>(), 1, "one of them had the test that fails: {statuses:?}");
        let ran = fs::read_to_string(folder.path().join("ran")).unwrap();
        let mut ran: Vec<usize> = ran.lines().map(|line| line.strip_prefix("m::").unwrap().parse().unwrap()).collect();
        ran.sort_unstable();
        assert_eq!(ran, (0..17).chain([18]).collect::<Vec<_>>());
        assert_eq!(list.not_done(&tests), ["program m::17"]);
    }
}
