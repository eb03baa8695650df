//! The paths of a running machine below `/run/garret`.

use std::path::{Path, PathBuf};

use garret_api::MachineId;

/// The files of one running machine below `/run/garret`: its folder `machines/<id>`, and `revocations/<id>`.
///
/// Only root may enter the machine's folder. The sockets are in it and not in `vm/`, because the VMM may write to
/// `vm/`. Root never connects to a socket there.
#[derive(Clone, Debug)]
pub(crate) struct MachinePaths {
    /// The machine's folder.
    pub run: PathBuf,
    /// One file per workspace that the machine may still hold after its unmount: the ids of its mounts. These files are
    /// outside the machine's folder, because its VMM can fill that folder.
    pub(super) revocations: PathBuf,
}

impl MachinePaths {
    /// The machine's paths below the runner's run folder.
    pub(crate) fn new(run_folder: &Path, machine: MachineId) -> Self {
        let id = machine.as_str();
        Self { run: run_folder.join("machines").join(id), revocations: run_folder.join("revocations").join(id) }
    }

    /// The socket of the VMM's API.
    pub(crate) fn api_socket(&self) -> PathBuf {
        self.run.join("api.sock")
    }

    /// The socket to the guest.
    pub(crate) fn vsock_socket(&self) -> PathBuf {
        self.run.join("vsock.sock")
    }

    /// The guest's console output.
    pub(crate) fn console_log(&self) -> PathBuf {
        self.vm().join("console.log")
    }

    /// The file with the reason why the VMM ended.
    pub(crate) fn last_words(&self) -> PathBuf {
        self.vm().join("last-words.json")
    }

    /// The VMM's own output.
    pub(crate) fn vmm_log(&self) -> PathBuf {
        self.run.join("vmm.log")
    }

    /// The folder in which workspaces are mounted.
    pub(crate) fn workspaces(&self) -> PathBuf {
        self.run.join("workspaces")
    }

    /// The mount point of one environment's workspace.
    pub(crate) fn workspace(&self, environment: &str) -> PathBuf {
        self.workspaces().join(environment)
    }

    /// The file with the mounts of one environment's workspace.
    pub(crate) fn revocation(&self, environment: &str) -> PathBuf {
        self.revocations.join(environment)
    }

    /// The folder that is the VMM's `/run`.
    pub(super) fn vm(&self) -> PathBuf {
        self.run.join("vm")
    }

    /// The jail's mount point; mounts there are visible only inside the jail.
    pub(super) fn jail(&self) -> PathBuf {
        self.run.join("jail")
    }

    /// The machine's configuration.
    pub(super) fn config(&self) -> PathBuf {
        self.run.join("config.json")
    }
}
