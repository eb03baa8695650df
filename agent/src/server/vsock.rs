//! Listens on vsock, for the host only.

use std::time::Duration;

use axum::serve::Listener;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

/// Pause after a failed accept (no file descriptors left): an immediate retry would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A vsock listener that closes every connection that does not come from the host. AF_VSOCK has no namespaces: a
/// container can connect to any address, and a client of this server has root rights in the guest.
pub(crate) struct HostOnly(VsockListener);

impl HostOnly {
    /// Listens on `port`.
    pub(crate) fn bind(port: u32) -> std::io::Result<Self> {
        Ok(Self(VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))?))
    }
}

impl Listener for HostOnly {
    type Io = VsockStream;
    type Addr = VsockAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match self.0.accept().await {
                Ok((stream, peer)) if is_host(&peer) => return (stream, peer),
                Ok((_, peer)) => tracing::warn!("refused a connection from vsock address {peer}"),
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

fn is_host(peer: &VsockAddr) -> bool {
    peer.cid() == VMADDR_CID_HOST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_host_is_let_in() {
        // Hypervisor, local, host, this guest, another guest, any.
        let let_in: Vec<u32> =
            [0, 1, 2, 3, 4, u32::MAX].into_iter().filter(|cid| is_host(&VsockAddr::new(*cid, 1024))).collect();
        assert_eq!(let_in, [2]);
    }
}
