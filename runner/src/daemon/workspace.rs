//! Opens and shares workspaces through a process that can be ended: see [`host::share`](crate::host::share).

use std::collections::HashMap;
use std::io;
#[cfg(not(test))]
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use garret_api::Problem;
#[cfg(not(test))]
use tokio::io::AsyncReadExt;
#[cfg(not(test))]
use tokio::process::{Child, Command};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::host::share::{self, Found, ShareSpec};

/// How long a file system may take to say what a folder is.
const DEADLINE: Duration = Duration::from_secs(10);
/// The most folders of one developer that are being opened or taken out of a machine at a time, hung ones included.
const AT_ONCE: usize = 4;

/// How many folders of each uid are being opened or taken out of a machine.
#[derive(Debug, Default)]
pub struct Workspaces {
    turns: Mutex<HashMap<u32, Arc<Semaphore>>>,
}

impl Workspaces {
    /// Carries out `spec` in a process of its own.
    ///
    /// # Errors
    /// One line for the developer: what is wrong with the folder, or that its file system does not answer.
    pub async fn share(&self, spec: ShareSpec) -> Result<Found, Problem> {
        let folder = spec.folder.display().to_string();
        let late = || {
            let said = format!("workspace {folder}: its file system did not answer within {} s", DEADLINE.as_secs());
            Problem::new("unavailable", said)
        };
        let Ok(Some(turn)) = timeout(DEADLINE, self.turn(spec.developer.uid)).await else { return Err(late()) };
        match carry_out(spec, turn).await {
            Ok(Some(answer)) => answer,
            Ok(None) => Err(late()),
            Err(error) => Err(Problem::new("internal", format!("workspace {folder}: {error}"))),
        }
    }

    /// Waits for one of this developer's turns, and keeps it for as long as what is returned lives.
    pub async fn turn(&self, uid: u32) -> Option<OwnedSemaphorePermit> {
        let turns = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.entry(uid).or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE))).clone()
        };
        // Never closed.
        turns.acquire_owned().await.ok()
    }
}

/// Runs ourselves as `garret share`; `None` if that did not end in time. One that hangs in the kernel keeps its turn until it
/// has really ended.
#[cfg(not(test))]
async fn carry_out(spec: ShareSpec, turn: OwnedSemaphorePermit) -> io::Result<Option<Result<Found, Problem>>> {
    // The file that runs, whatever an upgrade has put in its place.
    let mut child = Command::new("/proc/self/exe")
        .arg(share::SUBCOMMAND)
        .arg(serde_json::to_string(&spec)?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    match timeout(DEADLINE, answer(&mut child)).await {
        Ok(answer) => answer.map(Some),
        Err(_) => {
            let _ended_already = child.start_kill();
            tokio::spawn(async move {
                let _ = child.wait().await;
                drop(turn);
            });
            Ok(None)
        }
    }
}

/// Unit tests have no `garret` to run.
#[cfg(test)]
async fn carry_out(spec: ShareSpec, _turn: OwnedSemaphorePermit) -> io::Result<Option<Result<Found, Problem>>> {
    Ok(Some(tokio::task::spawn_blocking(move || share::share(&spec)).await?))
}

#[cfg(not(test))]
async fn answer(child: &mut Child) -> io::Result<Result<Found, Problem>> {
    let mut printed = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_end(&mut printed).await?;
    }
    let status = child.wait().await?;
    serde_json::from_slice(&printed).map_err(|_| io::Error::other(format!("the check ended with {status}")))
}
