//! `make campaign`: the kill campaign in its long form, on several emulated hosts at the same time. It takes hours, so
//! no group of `make test` includes it. The end-to-end tests contain a short slice of it.

use super::emulated::{CAMPAIGN, hosts, run_host};
use anyhow::{Context, bail};
use futures_util::future::try_join_all;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Contains a folder for each host and test.
const FOLDER: &str = "target/campaign";
/// The number of cases that one host runs before the next one takes over. A host that fails loses little.
const CASES_OF_A_HOST: u64 = 50;
/// The time limit of one case, with room for a slow machine.
const CASE: Duration = Duration::from_secs(120);
/// The most hosts that may fail in a row.
const FAILURES: u32 = 3;

/// The cases to run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Number of kills
    #[arg(long, env = "KILLS", default_value_t = 2000)]
    kills: u64,
    /// Seed of the cases
    #[arg(long, env = "SEED", default_value_t = 1)]
    seed: u64,
    /// Number of the first case, to continue a campaign or to repeat a case
    #[arg(long, env = "FIRST", default_value_t = 0)]
    first: u64,
    /// Number of machines to make and remove after the kills
    #[arg(long, env = "CYCLES", default_value_t = 300)]
    cycles: u64,
}

/// Runs the campaign. The exit code is 0 if all cases passed.
///
/// # Errors
/// The hosts themselves failed.
pub(crate) async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    super::enter_repository()?;
    let programs = super::test_programs().await?;
    let is_campaign =
        |program: &&PathBuf| program.file_name().is_some_and(|name| name.to_string_lossy().starts_with(CAMPAIGN));
    let program = programs.iter().find(is_campaign).context("there is no program of the campaign")?;
    let hosts = u64::try_from(hosts())?;
    let runs = (0..hosts).map(async |host| {
        let host_folder = Path::new(FOLDER).join(host.to_string());
        let mut passed = true;
        for (test, first, count) in [("kills", options.first, options.kills), ("cycles", 0, options.cycles)] {
            let folder = host_folder.join(test);
            make_empty(&folder)?;
            let (first, count) = part(first, count, host, hosts);
            passed = passed && Cases { program, folder: &folder, test, seed: options.seed, first, count }.run().await?;
        }
        anyhow::Ok(passed)
    });
    let passed = try_join_all(runs).await?.into_iter().all(|passed| passed);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The cases of one of `hosts` hosts: the number of the first, and how many.
fn part(first: u64, count: u64, host: u64, hosts: u64) -> (u64, u64) {
    let begin = |host| first + count * host / hosts;
    (begin(host), begin(host + 1) - begin(host))
}

/// The work of one sequence of hosts.
struct Cases<'a> {
    program: &'a Path,
    /// The folder with the list of passed cases and the logs of the last host.
    folder: &'a Path,
    test: &'a str,
    seed: u64,
    /// The number of the first case.
    first: u64,
    count: u64,
}

impl Cases<'_> {
    /// Runs cases until all have passed or one fails.
    async fn run(&self) -> anyhow::Result<bool> {
        let (mut done, mut failures) = (0, 0);
        while done < self.count {
            let status = self.run_on_a_host(self.first + done, (self.count - done).min(CASES_OF_A_HOST)).await?;
            done = passed(self.folder)?;
            match status {
                Some(status) if status == i32::from(crate::host::STATUS_HOST_FAILED) => failures += 1,
                Some(0) => failures = 0,
                _ => {
                    let logs = self.folder.join("logs");
                    println!(
                        "case {} of {} failed: its host's logs are in {}",
                        self.first + done,
                        self.test,
                        logs.display()
                    );
                    return Ok(false);
                }
            }
            if failures == FAILURES {
                bail!("an emulated host failed {FAILURES} times in a row");
            }
        }
        Ok(true)
    }

    /// Returns the status of the test program; `None` if it took too long.
    async fn run_on_a_host(&self, first: u64, count: u64) -> anyhow::Result<Option<i32>> {
        let name = self.program.file_name().and_then(|name| name.to_str()).context("a program without a name")?;
        let mut arguments = vec!["--preloaded".into(), "--logs".into(), self.folder.join("logs").into_os_string()];
        arguments.extend(["--share".into(), self.folder.into(), "--program".into(), self.program.into()]);
        let variables = format!("CAMPAIGN_SEED={} CAMPAIGN_FIRST={first} CAMPAIGN_COUNT={count}", self.seed);
        let command = format!("{variables} /run/host/programs/{name} --exact --nocapture {}", self.test);
        run_host(&arguments, CASE * u32::try_from(count)?, &command).await
    }
}

fn make_empty(folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    Ok(fs::create_dir_all(folder)?)
}

/// Returns how many cases have passed.
fn passed(folder: &Path) -> anyhow::Result<u64> {
    let notes = fs::read_to_string(folder.join("passed")).unwrap_or_default();
    Ok(u64::try_from(notes.lines().count())?)
}

#[cfg(test)]
mod tests {
    use super::part;

    #[test]
    fn hosts_share_out_every_case_once() {
        for (first, kills, hosts) in [(0, 2000, 2), (10, 7, 3), (5, 1, 4)] {
            let mut next = first;
            for host in 0..hosts {
                let (begin, count) = part(first, kills, host, hosts);
                assert_eq!(begin, next);
                next += count;
            }
            assert_eq!(next, first + kills);
        }
    }
}
