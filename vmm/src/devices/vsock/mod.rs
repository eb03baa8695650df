//! The socket device (virtio 1.2 §5.10): streams between the guest and Unix sockets of the host.
//!
//! A client connects to the machine's socket, writes `CONNECT <port>\n` and reads `OK <port>\n`. Then it has a stream
//! to that port of the guest. A guest that connects to port P of the host reaches the Unix socket `<socket>_P`, if it
//! exists. An inherited socket has no path, so the guest can reach no socket of the host.
//!
//! [`packet`] defines the wire format, [`connection`] the rules of one stream without I/O, and [`peer`] a stream with
//! its socket. [`muxer`] holds all connections, [`host`] the sockets on the host's side, and [`mod@backend`] the queues. A
//! guest is limited to [`muxer::CONNECTIONS_MAX`] connections, [`connection::BUFFER`] waiting bytes per connection,
//! [`muxer::BACKLOG_MAX`] waiting bytes in total, and [`muxer::REFUSALS_MAX`] waiting resets.

mod backend;
mod connection;
mod handshake;
mod host;
mod muxer;
mod packet;
mod peer;

#[cfg(test)]
pub(crate) mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use garret_api::vmm::{SocketAt, VsockConfig};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

pub(crate) use backend::VsockBackend;

use crate::inherited;
use crate::seccomp::Role;
use crate::virtio::{self, ConfigBytes, Device, Identity};

/// Packets to the guest, packets from it, events.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
/// The smaller numbers are the hypervisor, loopback and the host.
const CID_MIN: u32 = 3;

/// Why the device could not be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    #[error("vsock: the context id must be 3 or more and not 4294967295, not {0}")]
    Cid(u32),
    #[error("vsock: the path {path} is longer than {limit} bytes; use a shorter one")]
    PathTooLong {
        /// The socket's path.
        path: PathBuf,
        /// The longest possible.
        limit: usize,
    },
    #[error("vsock: {path} is not a socket; move it away")]
    NotASocket {
        /// The socket's path.
        path: PathBuf,
    },
    #[error("vsock: another process listens on {path}; stop it or choose another path")]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    #[error("vsock: cannot listen on {path}: {source}")]
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    #[error("vsock: inherited socket: {0}")]
    Inherited(io::Error),
    #[error("vsock: {0}")]
    Host(#[from] io::Error),
    #[error(transparent)]
    Device(#[from] virtio::BuildError),
}

/// Builds the device and listens on its socket.
pub(crate) fn new(config: &VsockConfig) -> Result<Device, BuildError> {
    Ok(Device::new(identity(config.cid), vec![(backend(config)?, 0..QUEUE_SIZES.len())], Role::Vsock)?)
}

fn identity(cid: u32) -> Identity {
    Identity {
        name: "vsock".to_owned(),
        device_type: VIRTIO_ID_VSOCK,
        // Streams only: this is the meaning of no feature bit (§5.10.3).
        features: 0,
        queue_sizes: QUEUE_SIZES.to_vec(),
        config: Arc::new(ConfigBytes(u64::from(cid).to_le_bytes().to_vec())),
    }
}

fn backend(config: &VsockConfig) -> Result<VsockBackend, BuildError> {
    if config.cid < CID_MIN || config.cid == u32::MAX {
        return Err(BuildError::Cid(config.cid));
    }
    let host = match &config.socket {
        SocketAt::Path(path) => host::Host::listen(path)?,
        SocketAt::Descriptor(number) => host::Host::inherit(inherited::listen(*number).map_err(BuildError::Inherited)?),
    };
    Ok(VsockBackend::new(muxer::Muxer::new(u64::from(config.cid), host)?)?)
}
