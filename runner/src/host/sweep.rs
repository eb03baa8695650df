//! Machines that are not in the state.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context;
use garret_api::MachineId;

use super::{MachinePaths, Slot, clean_up, run_folder};

/// A slot that no machine has: a machine's uplink is removed with its namespace.
const NO_SLOT: Slot = Slot(u16::MAX);

/// The machines below the run folder that are not `known`.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn unknown_machines(run_folder: &Path, known: &BTreeSet<MachineId>) -> anyhow::Result<Vec<MachineId>> {
    let folder = run_folder.join("machines");
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        // No machine has run yet.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", folder.display())),
    };
    // What has no machine's id as its name is not the runner's.
    let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(ids.filter(|id| !known.contains(id)).collect())
}

/// Removes all that such a machine has on the host, including its processes. Its data disk stays.
///
/// # Errors
/// A part of it cannot be removed.
pub(crate) fn remove_unknown(run_folder: &Path, machine: MachineId) -> anyhow::Result<()> {
    let paths = MachinePaths::new(run_folder, machine);
    clean_up(machine, NO_SLOT, &paths)?;
    run_folder::remove(&paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_machines_outside_the_state_are_unknown() {
        let run = tempfile::tempdir().unwrap();
        let [known, unknown] = ["garret-test-known", "garret-test-unknown"].map(|id| id.parse().unwrap());
        let found = |known: &[MachineId]| unknown_machines(run.path(), &known.iter().copied().collect()).unwrap();
        assert_eq!(found(&[]), []);
        for folder in ["garret-test-known", "garret-test-unknown", "not an id"] {
            fs::create_dir_all(run.path().join("machines").join(folder).join("vm")).unwrap();
        }
        assert_eq!(found(&[known]), [unknown]);
        remove_unknown(run.path(), unknown).unwrap();
        assert!(run.path().join("machines/garret-test-known/vm").exists());
        assert_eq!(found(&[known]), []);
    }
}
