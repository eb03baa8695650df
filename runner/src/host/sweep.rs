//! Machines that no state knows of: a state that was replaced, or what a removal left that was cut short.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Context;

use super::{MachinePaths, Slot, clean_up};

/// No machine has it: a machine's uplink goes with its namespace.
const NO_SLOT: Slot = Slot(u16::MAX);

/// Ends all machines below the run folder whose names are not `known`, and removes what they have there. Their data
/// disks stay. Returns their names.
///
/// # Errors
/// A part of one cannot be removed.
pub fn sweep(run_folder: &Path, known: &BTreeSet<String>) -> anyhow::Result<Vec<String>> {
    let folder = run_folder.join("machines");
    let mut swept = Vec::new();
    // Before the first machine there is no such folder.
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        if known.contains(&name) {
            continue;
        }
        let paths = MachinePaths::new(run_folder, &name);
        clean_up(&name, NO_SLOT, &paths).with_context(|| format!("machine {name}, which no state knows of"))?;
        fs::remove_dir_all(&paths.run).with_context(|| format!("cannot remove {}", paths.run.display()))?;
        swept.push(name);
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_no_state_knows_of_goes() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(sweep(run.path(), &BTreeSet::new()).unwrap(), [""; 0]);
        for name in ["garret-test-known", "garret-test-unknown"] {
            fs::create_dir_all(run.path().join("machines").join(name).join("vm")).unwrap();
        }
        let known = BTreeSet::from(["garret-test-known".to_string()]);
        assert_eq!(sweep(run.path(), &known).unwrap(), ["garret-test-unknown"]);
        assert!(run.path().join("machines/garret-test-known/vm").exists());
        assert!(!run.path().join("machines/garret-test-unknown").exists());
        assert_eq!(sweep(run.path(), &known).unwrap(), [""; 0]);
    }
}
