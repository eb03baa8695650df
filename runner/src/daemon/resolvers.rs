//! Follows the host's resolvers while the daemon runs: a laptop changes networks, or a DHCP lease brings new resolvers.

use std::sync::Arc;
use std::time::Duration;

use super::Daemon;
use super::memory::LogOnChange;
use crate::config;
use crate::host::{self, NetworkConfig};

/// Poll interval. The files are small, and some writers replace them in a way that a watch does not notice.
const INTERVAL: Duration = Duration::from_secs(5);

/// Updates the packet filter and the daemon's view of the network together; the drivers notify their machines.
pub(super) async fn follow(daemon: Arc<Daemon>) {
    let problem = LogOnChange::of("following the host's resolvers");
    loop {
        problem.note(poll(&daemon).await.err().map(|error| format!("{error:#}")));
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn poll(daemon: &Daemon) -> anyhow::Result<()> {
    let now = daemon.network();
    let next = tokio::task::spawn_blocking(config::host_resolvers).await?;
    let next: NetworkConfig = daemon.config.network(next)?;
    if next.resolvers.is_empty() {
        anyhow::bail!(
            "the host names no IPv4 resolver that machines can reach (loopback and the pool's addresses are not): machines \
             keep {:?}; set [network] resolvers in the daemon's configuration",
            now.resolvers
        );
    }
    if next == now {
        return Ok(());
    }
    tracing::info!("the resolvers are {:?} now, they were {:?}", next.resolvers, now.resolvers);
    let rules = next.clone();
    // The filter comes first, because it must pass the machines' requests to the new resolvers.
    tokio::task::spawn_blocking(move || host::prepare_network(&rules)).await??;
    daemon.network.send_replace(next);
    Ok(())
}
