//! `garret shell`

use clap::Args;
use garret_api::client::Client;

use super::exec::{Process, ProcessOptions, exec_path};
use super::target::{MachineFlag, Target};

/// Open the remote user's login shell in a devcontainer.
#[derive(Debug, Args)]
pub(super) struct Shell {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    machine: MachineFlag,
    #[command(flatten)]
    process: ProcessOptions,
}

impl Shell {
    pub(super) async fn run(self, client: &Client) -> anyhow::Result<u8> {
        let path = exec_path(client, &self.target, &self.machine).await?;
        Process { command: Vec::new(), options: self.process }.run(client, &path).await
    }
}
