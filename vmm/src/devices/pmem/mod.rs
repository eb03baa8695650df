//! virtio-pmem (§5.19): the root image as memory of the guest, read straight from the host's page cache.
//!
//! The image is mapped private and writable. All machines share one copy of the pages that none has written. A guest's
//! write to `/dev/pmem0` is visible only to that guest, and stays in memory. With a read-only mapping, every such write
//! would be an exit that cannot be emulated.

#[cfg(test)]
pub(crate) mod tests;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vhost_user_backend::bitmap::BitmapMmapRegion;
use virtio_bindings::virtio_ids::VIRTIO_ID_PMEM;
use vm_memory::{FileOffset, MmapRegion};

use crate::seccomp::Role;
use crate::virtio::{self, Backend, Chain, ConfigBytes, Device, Fault, Identity, Ring, Served};

/// The guest maps persistent memory in pages of this size.
pub(crate) const ALIGNMENT: u64 = 2 << 20;

const QUEUE_SIZE: u16 = 64;
/// The only request (§5.19.6).
const FLUSH: u32 = 0;
/// The answers (§5.19.6.1).
const DONE: u32 = 0;
const FAILED: u32 = 1;

/// Why an image cannot be the root image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("root image: cannot open {path}: {source}; build the image, or correct the path")]
    Open {
        /// The image.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// It is not a regular file (for example a folder or a device).
    #[error("root image: {path} is not a regular file")]
    NotAFile {
        /// The image.
        path: PathBuf,
    },
    /// Its length.
    #[error(
        "root image: {path} has {length} bytes, which is no positive multiple of 2 MiB; it is cut off or was not padded, build it again"
    )]
    Length {
        /// The image.
        path: PathBuf,
        /// Its length in bytes.
        length: u64,
    },
    #[error("root image: cannot map {path}: {source}")]
    Map {
        /// The image.
        path: PathBuf,
        /// The host's error.
        source: vm_memory::mmap::MmapRegionError,
    },
}

/// Maps the image, which the caller adds to the guest's memory at the address that it passes to [`new`].
pub(crate) fn map(path: &Path) -> Result<MmapRegion<BitmapMmapRegion>, Error> {
    let (file, length) = open(path)?;
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_NORESERVE);
    MmapRegion::build(Some(FileOffset::new(file, 0)), length as usize, protection, flags)
        .map_err(|source| Error::Map { path: path.to_owned(), source })
}

fn open(path: &Path) -> Result<(File, u64), Error> {
    let failed = |source| Error::Open { path: path.to_owned(), source };
    // Opening a named pipe must not block.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(Error::NotAFile { path: path.to_owned() });
    }
    let length = metadata.len();
    if length == 0 || !length.is_multiple_of(ALIGNMENT) {
        return Err(Error::Length { path: path.to_owned(), length });
    }
    Ok((file, length))
}

/// The device that reports to the guest where its persistent memory is. Both numbers are multiples of [`ALIGNMENT`].
pub(crate) fn new(guest_address: u64, size: u64) -> Result<Device, virtio::BuildError> {
    let space = [guest_address.to_le_bytes(), size.to_le_bytes()].concat();
    let identity = Identity {
        name: "pmem".to_owned(),
        device_type: VIRTIO_ID_PMEM,
        features: 0,
        queue_sizes: vec![QUEUE_SIZE],
        config: Arc::new(ConfigBytes(space)),
    };
    Device::new(identity, vec![(PmemBackend, 0..1)], Role::Quiet)
}

/// Answers flushes. There is nothing to flush: the guest's writes exist only as long as the machine.
struct PmemBackend;

impl Backend for PmemBackend {
    fn kicked(&mut self, _queue: usize, rings: &mut [Ring]) -> Result<(), Fault> {
        rings[0].drain(|chain| Ok(Served::Used(serve(&chain)?)))
    }
}

fn serve(chain: &Chain) -> Result<u32, Fault> {
    let request = chain.reader().read_obj::<u32>()?;
    let answer = if u32::from_le(request) == FLUSH { DONE } else { FAILED };
    chain.writer().write_obj(&answer.to_le())?;
    Ok(size_of_val(&answer) as u32)
}
