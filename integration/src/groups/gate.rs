//! The regression gate: compares garret's repeatable counts with the committed baseline. It always runs on an emulated
//! host that counts instructions, even if machines could run natively.

use super::emulated::run_host;
use anyhow::{Context, bail};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

const FOLDER: &str = "target/gate";
const BASELINE: &str = "benches/baseline.json";
/// The time limit of one attempt. It takes less than a minute, or three on a slow machine. The emulator hangs more often
/// while it counts instructions.
const ATTEMPT: Duration = Duration::from_secs(225);
const ATTEMPTS: u32 = 3;

/// Returns whether no count is worse. Better counts are reported and pass. In about one of twelve runs the emulator
/// delays a guest, and the agent receives more requests. So a count fails only if it is worse twice.
///
/// # Errors
/// The emulator hung each time, or there is no baseline.
pub(super) async fn run() -> anyhow::Result<bool> {
    Ok(passes().await? || {
        println!("measuring again to confirm");
        passes().await?
    })
}

/// Measures and compares.
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

/// Takes the samples. If an attempt hangs, the next one continues with its results.
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
            status => println!("attempt {attempt} of {ATTEMPTS} did not finish: status {status:?}"),
        }
    }
    bail!("the counts could not be measured: see the output of the attempts above")
}
