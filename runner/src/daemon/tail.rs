//! Reads the end of a file that a VMM may write.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};

/// The last `max` bytes of a regular file. Anything else is rejected: a pipe would block the daemon, a link would lead
/// elsewhere.
pub(super) fn read_tail(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    file.seek(SeekFrom::Start(metadata.len().saturating_sub(max)))?;
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_a_regular_file() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "0123456789").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(read_tail(&file, 3).unwrap(), b"789");
        assert_eq!(read_tail(&file, 100).unwrap(), b"0123456789");
        assert!(read_tail(&link, 3).is_err());
        assert!(read_tail(dir.path(), 3).is_err());
        assert!(read_tail(&dir.path().join("missing"), 3).is_err());
    }
}
