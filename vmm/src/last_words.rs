//! Why the machine ended, in a file which is opened before the jail closes.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use garret_api::vmm::{ExitReason, LastWords};

/// Where the last words go; without a file only to standard error.
pub(crate) struct LastWordsFile(Option<File>);

impl LastWordsFile {
    /// Creates the file, empty: it stays empty if the VMM is killed. A forbidden system call writes there too.
    pub(crate) fn open(path: Option<&Path>) -> io::Result<Self> {
        let file = path.map(File::create).transpose()?;
        if let Some(file) = &file {
            crate::seccomp::log_to(OwnedFd::from(file.try_clone()?));
        }
        Ok(Self(file))
    }

    pub(crate) fn write(mut self, reason: ExitReason, message: &str) {
        let words = LastWords { reason, message: message.to_owned() };
        if let (Some(file), Ok(json)) = (&mut self.0, serde_json::to_string(&words)) {
            let _ = file.write_all(json.as_bytes()); // nothing is left to report it to
        }
        eprintln!("garret-vmm: {message}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_empty_until_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last-words.json");
        let file = LastWordsFile::open(Some(&path)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        file.write(ExitReason::PowerOff, "the guest powered off");
        let words: LastWords = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(words, LastWords { reason: ExitReason::PowerOff, message: "the guest powered off".into() });
    }
}
