//! KVM's statistics of a machine, from the files in `/sys/kernel/debug/kvm/<thread>-<fd>/`: the sum of all its vCPUs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::Context;

/// The folder of KVM's statistics.
pub(super) const FOLDER: &str = "/sys/kernel/debug/kvm";

/// The statistics of the machine that one of `threads` created. They are empty before it is created.
///
/// # Errors
/// debugfs is not mounted, or cannot be read.
pub(super) fn statistics(folder: &Path, threads: &BTreeSet<u32>) -> anyhow::Result<BTreeMap<String, u64>> {
    let entries = fs::read_dir(folder).with_context(|| format!("{} (mount -t debugfs)", folder.display()))?;
    let mut statistics = BTreeMap::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let made_by = name.to_str().and_then(|name| name.split_once('-')?.0.parse().ok());
        if made_by.is_some_and(|thread| threads.contains(&thread)) {
            add(&mut statistics, &entry.path());
        }
    }
    Ok(statistics)
}

/// A machine that ends at the same time removes its files.
fn add(statistics: &mut BTreeMap<String, u64>, folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let value = fs::read_to_string(entry.path()).ok().and_then(|text| text.trim().parse::<u64>().ok());
        if let (Some(value), Ok(name)) = (value, entry.file_name().into_string()) {
            *statistics.entry(name).or_default() += value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_found_by_the_thread_that_made_it() {
        let folder = tempfile::tempdir().unwrap();
        for (machine, exits) in [("41-11", "100\n"), ("42-9", "7\n")] {
            let machine = folder.path().join(machine);
            fs::create_dir_all(machine.join("vcpu0")).unwrap();
            fs::write(machine.join("exits"), exits).unwrap();
            fs::write(machine.join("halt_poll_histogram"), "1 2 3").unwrap();
        }
        fs::write(folder.path().join("exits"), "107\n").unwrap();
        let of = |thread| statistics(folder.path(), &BTreeSet::from([thread])).unwrap();
        assert_eq!(of(42), BTreeMap::from([("exits".into(), 7)]));
        assert_eq!(of(43), BTreeMap::new());
        assert!(statistics(Path::new("/no/such"), &BTreeSet::new()).is_err());
    }
}
