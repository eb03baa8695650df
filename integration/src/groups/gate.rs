//! The regression gate: what garret costs, in counts that repeat, against the baseline that is committed. It runs on an emulated
//! host that counts instructions, also where machines could run natively.

use super::emulated::run_host;
use anyhow::{Context, bail};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

const FOLDER: &str = "target/gate";
const BASELINE: &str = "benches/baseline.json";
/// An attempt takes less than a minute, and three on a slow machine; while it counts instructions, the emulator hangs more often
/// than else.
const ATTEMPT: Duration = Duration::from_secs(225);
const ATTEMPTS: u32 = 3;

/// Gives whether nothing is worse. What is better is told, and passes. Once in a dozen runs the emulator makes a guest wait, and
/// the agent is asked more often: what is worse has to be worse twice.
///
/// # Errors
/// The emulator hung each time, or there is no baseline.
pub(super) async fn run() -> anyhow::Result<bool> {
    Ok(passes().await? || {
        println!("once more, to be sure");
        passes().await?
    })
}

/// Measures and judges.
async fn passes() -> anyhow::Result<bool> {
    let (folder, bench) = (Path::new(FOLDER), Path::new(super::RELEASE).join("garret-bench"));
    let results = folder.join("results.jsonl");
    std::fs::create_dir_all(folder)?;
    if results.exists() {
        std::fs::remove_file(&results)?;
    }
    measure(folder, &bench).await?;
    let mut judge = Command::new(&bench);
    judge.arg("gate").arg(BASELINE).arg(&results).stdin(Stdio::null());
    match judge.status().await.context("cannot run garret-bench")?.code() {
        Some(0 | 3) => Ok(true),
        _ => Ok(false),
    }
}

/// Takes the samples; an attempt that hangs leaves what it has to the next.
async fn measure(folder: &Path, bench: &Path) -> anyhow::Result<()> {
    let options = [
        "--icount".as_ref(),
        "--no-runner".as_ref(),
        "--share".as_ref(),
        folder.as_os_str(),
        "--program".as_ref(),
        bench.as_os_str(),
    ];
    let command = "/run/host/programs/garret-bench run --icount --size gate --subjects garret --resume";
    for attempt in 1..=ATTEMPTS {
        match run_host(&options.map(Into::into), ATTEMPT, command).await? {
            Some(0) => return Ok(()),
            status => println!("attempt {attempt} of {ATTEMPTS} did not get to its end: status {status:?}"),
        }
    }
    bail!("the counts could not be taken")
}
