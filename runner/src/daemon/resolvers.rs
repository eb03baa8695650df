//! Follows the host's resolvers while the daemon runs: a laptop changes networks, a DHCP lease brings another.

use std::sync::Arc;
use std::time::Duration;

use super::Daemon;
use super::memory::LogOnChange;
use crate::config;
use crate::host::{self, NetworkConfig};

/// Poll interval. The files are small, and not every writer replaces them in a way that a watch sees.
const INTERVAL: Duration = Duration::from_secs(5);

/// Keeps the packet filter and the daemon's view of the network in step; the drivers tell their machines.
pub async fn follow(daemon: Arc<Daemon>) {
    let problem = LogOnChange::of("following the host's resolvers");
    loop {
        problem.note(look(&daemon).await.err().map(|error| format!("{error:#}")));
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn look(daemon: &Daemon) -> anyhow::Result<()> {
    let now = daemon.network();
    let next = tokio::task::spawn_blocking(config::host_resolvers).await?;
    let next: NetworkConfig = daemon.config.network(next)?;
    if next.resolvers.is_empty() {
        anyhow::bail!(
            "the host names no IPv4 resolver but its own loopback address: machines keep {:?}; \
             set [network] resolvers in the daemon's configuration",
            now.resolvers
        );
    }
    if next == now {
        return Ok(());
    }
    tracing::info!("the resolvers are {:?} now, they were {:?}", next.resolvers, now.resolvers);
    let rules = next.clone();
    // First the filter, then the machines: what they ask must pass.
    tokio::task::spawn_blocking(move || host::prepare_network(&rules)).await??;
    daemon.network.send_replace(next);
    Ok(())
}
