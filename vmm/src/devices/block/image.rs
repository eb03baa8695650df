//! The raw file behind a disk.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use garret_api::vmm::DiskConfig;
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};

use super::request::{Disk, SECTOR};

/// Why an image cannot be used as a disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("disk {id}: cannot open {path}: {source}; the image must exist and belong to the machine's user")]
    Open { id: String, path: PathBuf, source: io::Error },
    /// It is not a regular file (for example a folder or a device).
    #[error("disk {id}: {path} is not a regular file; give a raw image")]
    NotAFile { id: String, path: PathBuf },
    /// Its length is zero or not a multiple of the sector size.
    #[error("disk {id}: {path} has {length} bytes, which is no positive multiple of 512; give a whole raw image")]
    Length { id: String, path: PathBuf, length: u64 },
    #[error("disk {id}: {path} is in use by another machine; stop that one first")]
    InUse { id: String, path: PathBuf },
}

/// An open, locked image.
#[derive(Debug)]
pub(super) struct Image {
    pub file: File,
    pub disk: Disk,
}

impl Image {
    /// Opens and locks the image: exclusively, or shared if it is read-only.
    pub(super) fn open(config: &DiskConfig) -> Result<Self, ImageError> {
        let (id, path) = (config.id.clone(), config.path.clone());
        let failed = |source| ImageError::Open { id: id.clone(), path: path.clone(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(!config.read_only)
            .custom_flags(libc::O_NONBLOCK) // a named pipe must not hold us
            .open(&path)
            .map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(ImageError::NotAFile { id, path });
        }
        let length = metadata.len();
        if length == 0 || !length.is_multiple_of(SECTOR) {
            return Err(ImageError::Length { id, path, length });
        }
        let lock = if config.read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        match flock(&file, lock) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(ImageError::InUse { id, path }),
            result => result.map_err(|errno| failed(errno.into()))?,
        }
        let discard = !config.read_only && can_punch(&file, length);
        Ok(Self { file, disk: Disk { sectors: length / SECTOR, read_only: config.read_only, discard } })
    }
}

/// Whether the file system supports holes. Punches one behind the end of the file, which changes nothing.
fn can_punch(file: &File, length: u64) -> bool {
    fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, length, 4096).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn config(path: &Path, read_only: bool) -> DiskConfig {
        DiskConfig { id: "data".to_owned(), path: path.to_owned(), read_only, rate_limit: None }
    }

    fn image(length: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(length).unwrap();
        file
    }

    #[test]
    fn a_whole_image_opens_and_keeps_its_length() {
        let file = image(1 << 20);
        let opened = Image::open(&config(file.path(), false)).unwrap();
        assert_eq!((opened.disk.sectors, opened.disk.read_only), (2048, false));
        assert_eq!(file.as_file().metadata().unwrap().len(), 1 << 20);
    }

    #[test]
    fn a_bad_image_is_one_clear_line() {
        let missing = Image::open(&config(Path::new("/nowhere/data.img"), false)).unwrap_err().to_string();
        assert!(missing.contains("disk data") && missing.contains("/nowhere/data.img"), "{missing}");
        let folder = tempfile::tempdir().unwrap();
        let message = Image::open(&config(folder.path(), true)).unwrap_err().to_string();
        assert!(message.contains("not a regular file"), "{message}");
        for length in [0, 1, 511, 513, (1 << 20) + 1] {
            let message = Image::open(&config(image(length).path(), false)).unwrap_err().to_string();
            assert!(message.contains(&format!("{length} bytes")) && !message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn one_writer_or_many_readers() {
        let file = image(512);
        let writer = Image::open(&config(file.path(), false)).unwrap();
        for read_only in [false, true] {
            let error = Image::open(&config(file.path(), read_only)).unwrap_err();
            assert!(matches!(error, ImageError::InUse { .. }), "{error}");
        }
        drop(writer);
        let _readers = [(); 2].map(|()| Image::open(&config(file.path(), true)).unwrap());
        assert!(Image::open(&config(file.path(), false)).is_err());
    }
}
