//! A workspace folder on disk.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::find::Files;

/// The largest devcontainer.json, in bytes.
const CONFIG_MAX: u64 = 1 << 20;

/// A workspace folder, in which a devcontainer.json is searched.
#[derive(Clone, Copy, Debug)]
pub struct Folder<'a>(pub &'a Path);

impl Files for Folder<'_> {
    fn is_file(&self, path: &str) -> bool {
        self.0.join(path).is_file()
    }

    fn folders(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.0.join(path)).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.path().is_dir());
        folders.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }
}

impl Folder<'_> {
    /// The text of a devcontainer.json that [`find`](crate::find()) has found.
    ///
    /// # Errors
    /// It cannot be read, is not a regular file, or is larger than 1 MiB.
    pub fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        // A file that became a FIFO since it was found must not block.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(self.0.join(path))?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let mut bytes = Vec::new();
        file.take(CONFIG_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > CONFIG_MAX {
            return Err(io::Error::other(format!("it is larger than {CONFIG_MAX} bytes")));
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::find;

    #[test]
    fn a_file_is_read_up_to_its_limit_and_a_fifo_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("devcontainer.json");
        let folder = Folder(folder.path());
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert!(find(&folder, None).is_err());
        assert!(folder.read("devcontainer.json").unwrap_err().to_string().contains("regular file"));
        fs::remove_file(&path).unwrap();
        for (size, fits) in [(CONFIG_MAX, true), (CONFIG_MAX + 1, false)] {
            fs::write(&path, vec![b' '; usize::try_from(size).unwrap()]).unwrap();
            assert_eq!(folder.read(&find(&folder, None).unwrap()).is_ok(), fits, "{size}");
        }
    }
}
