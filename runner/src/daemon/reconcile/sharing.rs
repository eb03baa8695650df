//! A run's first step: mounts the workspace into the machine.

use garret_api::Problem;
use garret_api::agent::Progress;

use super::environment_run::{EnvironmentRun, finish};
use crate::daemon::state::{MachineRow, StoreError};
use crate::host::share::{ExistingMount, MountRequest, ShareSpec};

impl EnvironmentRun {
    /// Opens the workspace again with its developer's rights, shares it, and brings the environment up.
    pub(super) async fn share_and_bring_up(&self, machine: &MachineRow) -> Result<(), StoreError> {
        let shared = match self.share(machine).await {
            // A container keeps using the folder that it was started with.
            Ok(ExistingMount::Other) => self.stop_container().await?,
            Ok(ExistingMount::Nothing | ExistingMount::Same) => Ok(()),
            Err(problem) => Err(problem),
        };
        match shared {
            Ok(()) => self.bring_up().await,
            Err(problem) => {
                let progress = Progress::Failed { step: "share workspace".into(), problem };
                finish(&self.daemon, &self.row, progress).await
            }
        }
    }

    async fn share(&self, machine: &MachineRow) -> Result<ExistingMount, Problem> {
        let paths = self.daemon.paths(machine.id);
        let spec = ShareSpec {
            folder: self.row.workspace.clone(),
            developer: self.daemon.developer(machine.owner, machine.gid).await,
            mount_point: Some(paths.workspace(&self.row.id)),
            mount: Some(MountRequest {
                vmm_uid: self.daemon.vmm_uid(machine).await,
                vmm_pid: self.daemon.vmm_pid(machine.id),
                note: paths.revocation(&self.row.id),
            }),
        };
        self.daemon.workspaces.share(spec).await
    }
}
