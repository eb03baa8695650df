//! Ends machines that are not in the state: the state was replaced, or a removal was interrupted. Their guests are
//! asked first, because they may hold data that was not written yet.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use garret_api::client::Client;
use garret_api::{MachineId, agent};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::vmm::VmmProcess;
use super::{ANSWER_MAX, power_off};
use crate::host::{self, MachinePaths};

/// The pause before the host is asked again for a machine's VMM.
const PAUSE: Duration = Duration::from_secs(1);

/// Stops all machines below the run folder that are not `known`, in parallel and with `patience` for each.
/// Removes what they have on the host. Their data disks stay.
pub(super) async fn sweep(run: &Path, known: &BTreeSet<MachineId>, patience: Duration) {
    match host::unknown_machines(run, known) {
        Ok(unknown) => drop(join_all(unknown.into_iter().map(|machine| end(run.to_owned(), machine, patience))).await),
        Err(error) => tracing::error!("cannot look for machines that are not in the state: {error:#}"),
    }
}

async fn end(run: PathBuf, machine: MachineId, patience: Duration) {
    let powered_off = power_off(&MachinePaths::new(&run, machine), machine, patience).await;
    let gone = tokio::task::spawn_blocking(move || host::remove_unknown(&run, machine)).await;
    match gone.map_err(anyhow::Error::from).flatten() {
        Ok(()) if powered_off => tracing::warn!("ended machine {machine}, which is not in the state"),
        Ok(()) => {
            tracing::warn!("killed machine {machine}, which is not in the state and did not power off");
        }
        Err(error) => tracing::error!("cannot end machine {machine}, which is not in the state: {error:#}"),
    }
}

/// Whether the machine has no VMM any more, or never had one.
async fn power_off(paths: &MachinePaths, machine: MachineId, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    let process = match timeout_at(deadline, vmm_of(paths, machine)).await {
        Ok(Some(process)) => process,
        Ok(None) => return true,
        Err(_) => return false,
    };
    let question = power_off::question(patience);
    let bound_to_vmm =
        |client: Client| client.of_process(process.id.pid).with_deadline(question).with_body_max(ANSWER_MAX);
    let vmm = bound_to_vmm(Client::unix(paths.api_socket()));
    let agent = bound_to_vmm(Client::vsock(paths.vsock_socket(), agent::PORT));
    tokio::select! {
        () = process.ended() => true,
        () = sleep_until(deadline) => false,
        never = power_off::ask(machine, &agent, &vmm, patience, || vmm.post("/v1/resume")) => match never {},
    }
}

/// The machine's VMM, if it has one. Retries until the host can tell. Only root can have put the socket there.
async fn vmm_of(paths: &MachinePaths, machine: MachineId) -> Option<VmmProcess> {
    loop {
        match VmmProcess::listening_on(&paths.api_socket()).await {
            Ok(process) => return process,
            Err(error) => tracing::warn!("cannot look for the VMM of machine {machine}; it is retried: {error}"),
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[tokio::test]
    async fn a_vmm_that_cannot_be_looked_for_gets_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let machine = "m".parse().unwrap();
        let paths = MachinePaths::new(dir.path(), machine);
        assert!(power_off(&paths, machine, Duration::ZERO).await);
        fs::create_dir_all(paths.api_socket().parent().unwrap()).unwrap();
        // ELOOP takes the place of the error of a host without free descriptors.
        symlink(paths.api_socket(), paths.api_socket()).unwrap();
        let (begun, patience) = (Instant::now(), Duration::from_millis(100));
        assert!(!power_off(&paths, machine, patience).await);
        assert!(begun.elapsed() >= patience);
    }
}
