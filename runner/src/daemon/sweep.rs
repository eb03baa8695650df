//! Ends machines that no state knows of: the state was replaced, or a removal was cut short. Their guests are asked first:
//! they may hold what was not written yet.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use garret_api::agent;
use garret_api::client::Client;

use super::power_off;
use super::vmm::VmmProcess;
use crate::host::{self, MachinePaths};

/// Stops all machines below the run folder whose names are not `known`, side by side and with `patience` for each, and
/// removes what they have on the host. Their data disks stay.
pub async fn sweep(run: &Path, known: &BTreeSet<String>, patience: Duration) {
    match host::unknown_machines(run, known) {
        Ok(names) => drop(join_all(names.into_iter().map(|name| end(run.to_owned(), name, patience))).await),
        Err(error) => tracing::error!("cannot look for machines that no state knows of: {error:#}"),
    }
}

async fn end(run: PathBuf, name: String, patience: Duration) {
    let powered_off = power_off(&MachinePaths::new(&run, &name), &name, patience).await;
    let removed = name.clone();
    let gone = tokio::task::spawn_blocking(move || host::remove_unknown(&run, &removed)).await;
    match gone.map_err(anyhow::Error::from).flatten() {
        Ok(()) if powered_off => tracing::warn!("ended machine {name}, which no state knows of"),
        Ok(()) => {
            tracing::warn!("cut the power of machine {name}, which no state knows of and which does not power off")
        }
        Err(error) => tracing::error!("cannot end machine {name}, which no state knows of: {error:#}"),
    }
}

/// Whether the machine has no VMM any more, or never had one.
async fn power_off(paths: &MachinePaths, name: &str, patience: Duration) -> bool {
    // Only root can have put the socket there.
    let process = match VmmProcess::listening_on(&paths.api_socket()).await {
        Ok(Some(process)) => process,
        Ok(None) => return true,
        Err(_) => return false,
    };
    let proven = |client: Client| client.of_process(process.id.pid).with_deadline(power_off::QUESTION);
    let vmm = proven(Client::unix(paths.api_socket()));
    let agent = proven(Client::vsock(paths.vsock_socket(), agent::PORT));
    tokio::select! {
        () = process.ended() => true,
        () = tokio::time::sleep(patience) => false,
        never = power_off::ask(name, &agent, &vmm, || vmm.post("/v1/resume")) => match never {},
    }
}
