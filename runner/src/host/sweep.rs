//! Machines that are not in the state.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context;

use super::{MachinePaths, Slot, clean_up, run_folder};

/// A slot that no machine has: a machine's uplink is removed with its namespace.
const NO_SLOT: Slot = Slot(u16::MAX);

/// The machines below the run folder whose names are not `known`.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn unknown_machines(run_folder: &Path, known: &BTreeSet<String>) -> anyhow::Result<Vec<String>> {
    let folder = run_folder.join("machines");
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        // No machine has run yet.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", folder.display())),
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| !known.contains(name)).collect())
}

/// Removes all that such a machine has on the host, including its processes. Its data disk stays.
///
/// # Errors
/// A part of it cannot be removed.
pub(crate) fn remove_unknown(run_folder: &Path, name: &str) -> anyhow::Result<()> {
    let paths = MachinePaths::new(run_folder, name);
    clean_up(name, NO_SLOT, &paths)?;
    run_folder::remove(&paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_machines_outside_the_state_are_unknown() {
        let run = tempfile::tempdir().unwrap();
        let unknown = |known: &[&str]| {
            unknown_machines(run.path(), &known.iter().map(|name| (*name).to_owned()).collect()).unwrap()
        };
        assert_eq!(unknown(&[]), [""; 0]);
        for name in ["garret-test-known", "garret-test-unknown"] {
            fs::create_dir_all(run.path().join("machines").join(name).join("vm")).unwrap();
        }
        assert_eq!(unknown(&["garret-test-known"]), ["garret-test-unknown"]);
        remove_unknown(run.path(), "garret-test-unknown").unwrap();
        assert!(run.path().join("machines/garret-test-known/vm").exists());
        assert_eq!(unknown(&["garret-test-known"]), [""; 0]);
    }
}
