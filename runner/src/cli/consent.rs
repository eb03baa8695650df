//! The developer's consent per workspace to send variables that look like credentials: `~/.config/garret/consent.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

/// The variables' names by workspace.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Consent {
    file: PathBuf,
    given: BTreeMap<PathBuf, BTreeSet<String>>,
}

impl Consent {
    /// Reads the developer's own file.
    ///
    /// # Errors
    /// It is not readable, or does not have the format that this program writes.
    pub(super) fn read() -> anyhow::Result<Self> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
        Self::at(&folder.context("HOME is not set: it holds garret's consent.json")?.join("garret/consent.json"))
    }

    pub(super) fn at(file: &Path) -> anyhow::Result<Self> {
        let given = match fs::read(file) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("{} is damaged: correct or remove it", file.display()))?,
            Err(error) if error.kind() == ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        Ok(Self { file: file.into(), given })
    }

    pub(super) fn has(&self, workspace: &Path, name: &str) -> bool {
        self.given.get(workspace).is_some_and(|names| names.contains(name))
    }

    /// Stores a consent.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn add(&mut self, workspace: &Path, name: &str) -> anyhow::Result<()> {
        match self.given.entry(workspace.into()).or_default().insert(name.into()) {
            true => self.write(),
            false => Ok(()),
        }
    }

    /// Deletes a workspace's consents.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn clear(&mut self, workspace: &Path) -> anyhow::Result<()> {
        match self.given.remove(workspace) {
            Some(_) => self.write(),
            None => Ok(()),
        }
    }

    /// Replaces the file atomically: if the command is killed, the old file stays.
    fn write(&self) -> anyhow::Result<()> {
        let write = || {
            let folder = self.file.parent().unwrap_or(Path::new("/"));
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            let new = self.file.with_extension(format!("json.{}", std::process::id()));
            let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&serde_json::to_vec_pretty(&self.given)?)?;
            fs::rename(&new, &self.file)
        };
        write().with_context(|| format!("cannot write {}", self.file.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn consent_is_kept_per_workspace_and_can_be_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("garret/consent.json");
        let mut consent = Consent::at(&file).unwrap();
        consent.add(Path::new("/a"), "TOKEN").unwrap();
        consent.add(Path::new("/b"), "KEY").unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let mut again = Consent::at(&file).unwrap();
        assert_eq!(again, consent);
        assert!(again.has(Path::new("/a"), "TOKEN") && !again.has(Path::new("/b"), "TOKEN"));
        again.clear(Path::new("/a")).unwrap();
        let left = Consent::at(&file).unwrap();
        assert!(!left.has(Path::new("/a"), "TOKEN") && left.has(Path::new("/b"), "KEY"));
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("consent.json");
        fs::write(&file, "[").unwrap();
        assert!(Consent::at(&file).unwrap_err().to_string().ends_with("consent.json is damaged: correct or remove it"));
    }
}
