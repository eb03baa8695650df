//! The file system device (virtio 1.2 §5.11): one folder of the host, shared by FUSE.
//!
//! The server is virtiofsd's, in this process. [`guard`] rejects requests that a hostile guest must not make,
//! [`owners`] maps the owners of files, and [`request`] checks a message before it is served. [`share_server`] holds
//! the server, [`pool`] the threads that may wait for the disk, and [`backend`] the queues.

mod backend;
mod guard;
mod owners;
mod pool;
mod request;
mod share_server;

#[cfg(test)]
mod fuse_client;
#[cfg(test)]
pub(crate) mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use garret_api::vmm::ShareConfig;
use rustix::process::Resource;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;

pub(crate) use backend::FsBackend;
use pool::Pool;
use share_server::ShareServer;

use crate::seccomp::Role;
use crate::virtio::{self, ConfigBytes, Device, Identity};

/// The queue for forgotten inodes.
const HIGH_PRIORITY_SIZE: u16 = 256;
/// A request of 1 MiB has 256 pages and a few headers.
const REQUEST_SIZE: u16 = 1024;
/// The length of the tag in the configuration space (§5.11.4).
const TAG_MAX: usize = 36;
/// The most threads that may wait for the disk: per request queue, and in total.
const THREADS_PER_QUEUE: usize = 2;
const THREADS_MORE: usize = 2;
/// File descriptors that the rest of the process may need in addition to the guest's.
const FD_RESERVE: u64 = 256;

/// Why the device could not be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    #[error("share {tag}: cannot open the folder {path}: {source}")]
    Folder {
        /// The mount tag.
        tag: String,
        /// The folder.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    #[error("share {0:?}: a tag has 1 to 36 bytes and none of them is zero")]
    Tag(String),
    #[error("share {tag}: there can be 1 to 8 queues, not {queues}")]
    Queues {
        /// The mount tag.
        tag: String,
        /// The requested number.
        queues: u8,
    },
    /// The process may not open as many files as the guest is promised.
    #[error(
        "share {tag}: fd_limit is {wanted}, but the process may open {allowed} files more; raise RLIMIT_NOFILE or lower fd_limit"
    )]
    Descriptors {
        /// The mount tag.
        tag: String,
        /// The guest's limit.
        wanted: u64,
        /// The number of files that the process may open for the guest.
        allowed: u64,
    },
    #[error("share {tag}: {source}")]
    Host {
        /// The mount tag.
        tag: String,
        /// The host's error.
        source: io::Error,
    },
    #[error(transparent)]
    Device(#[from] virtio::BuildError),
}

/// Builds the device `fs<number>`.
pub(crate) fn new(number: usize, config: &ShareConfig) -> Result<Device, BuildError> {
    let tag = &config.tag;
    if tag.is_empty() || tag.len() > TAG_MAX || tag.contains('\0') {
        return Err(BuildError::Tag(tag.clone()));
    }
    if !(1..=8).contains(&config.queues) {
        return Err(BuildError::Queues { tag: tag.clone(), queues: config.queues });
    }
    check_descriptors(config)?;
    let identity = identity(number, config);
    let queues = usize::from(config.queues);
    let server = ShareServer::open(config, config.fd_limit, queues).map(Arc::new);
    let server = server.map_err(|source| BuildError::Folder { tag: tag.clone(), path: config.path.clone(), source })?;
    let host = |source| BuildError::Host { tag: tag.clone(), source };
    let threads = THREADS_PER_QUEUE * queues + THREADS_MORE;
    let pool = Pool::start(&identity.name, threads, &server).map(Arc::new).map_err(host)?;
    let groups = (0..queues).map(|queue| {
        // The first backend also has the high-priority queue, queue 0.
        let rings = if queue == 0 { 0..2 } else { queue + 1..queue + 2 };
        Ok((FsBackend::new(server.clone(), pool.clone())?, rings))
    });
    let groups = groups.collect::<io::Result<_>>().map_err(host)?;
    Ok(Device::new(identity, groups, Role::Fs)?)
}

fn identity(number: usize, config: &ShareConfig) -> Identity {
    let mut space = config.tag.clone().into_bytes();
    space.resize(TAG_MAX, 0);
    space.extend(u32::from(config.queues).to_le_bytes());
    let mut queue_sizes = vec![REQUEST_SIZE; usize::from(config.queues) + 1];
    queue_sizes[0] = HIGH_PRIORITY_SIZE;
    Identity {
        name: format!("fs{number}"),
        device_type: VIRTIO_ID_FS,
        features: 0,
        queue_sizes,
        config: Arc::new(ConfigBytes(space)),
    }
}

fn check_descriptors(config: &ShareConfig) -> Result<(), BuildError> {
    let limit = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let allowed = limit.saturating_sub(FD_RESERVE);
    if config.fd_limit > allowed {
        return Err(BuildError::Descriptors { tag: config.tag.clone(), wanted: config.fd_limit, allowed });
    }
    Ok(())
}
