use std::path::{Path, PathBuf};

/// The files of one running machine below `/run/garret`: its folder `machines/<name>`, and `revocations/<name>`.
///
/// Only root may enter the machine's folder. The sockets lie in it and not in `vm/`, which the VMM may write: whatever is there, root
/// never connects to it.
#[derive(Clone, Debug)]
pub struct MachinePaths {
    /// The machine's folder.
    pub run: PathBuf,
    /// One file per workspace that the machine may hold although it is unmounted: the numbers of its mounts. Outside the
    /// machine's folder, which its VMM can fill.
    pub(super) revocations: PathBuf,
}

impl MachinePaths {
    /// The paths of machine `name` below the runner's run folder.
    pub fn new(run_folder: &Path, name: &str) -> Self {
        Self { run: run_folder.join("machines").join(name), revocations: run_folder.join("revocations").join(name) }
    }

    /// The VMM's API.
    pub fn api_socket(&self) -> PathBuf {
        self.run.join("api.sock")
    }

    /// The socket to the guest.
    pub fn vsock_socket(&self) -> PathBuf {
        self.run.join("vsock.sock")
    }

    /// What the guest printed on its console.
    pub fn console_log(&self) -> PathBuf {
        self.vm().join("console.log")
    }

    /// Why the VMM ended.
    pub fn last_words(&self) -> PathBuf {
        self.vm().join("last-words.json")
    }

    /// What the VMM itself printed.
    pub fn vmm_log(&self) -> PathBuf {
        self.run.join("vmm.log")
    }

    /// The folder in which workspaces are mounted.
    pub fn workspaces(&self) -> PathBuf {
        self.run.join("workspaces")
    }

    /// The mount point of one environment's workspace.
    pub fn workspace(&self, environment: &str) -> PathBuf {
        self.workspaces().join(environment)
    }

    /// The note of one environment's workspace.
    pub fn revocation(&self, environment: &str) -> PathBuf {
        self.revocations.join(environment)
    }

    /// The VMM's `/run`.
    pub(super) fn vm(&self) -> PathBuf {
        self.run.join("vm")
    }

    /// The jail's mount point; what is mounted there is seen only inside the jail.
    pub(super) fn jail(&self) -> PathBuf {
        self.run.join("jail")
    }

    /// The machine's configuration.
    pub(super) fn config(&self) -> PathBuf {
        self.run.join("config.json")
    }
}
