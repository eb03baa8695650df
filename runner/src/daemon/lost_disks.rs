//! Data disks that outlived the state. Each machine's folder notes its owner, so that an owner whose machine is not in the
//! state gets the disk back: a new machine gets the id of that folder.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::SystemTime;

use garret_api::MachineId;

/// The note's name, beside the disk. Only root can write to the folder.
const NOTE: &str = "owner";
const DISK: &str = "data.img";

/// Writes the owner into the machine's folder. Blocks.
///
/// # Errors
/// The folder is full or not writable.
pub(super) fn note_owner(folder: &Path, uid: u32, account: Option<&str>) -> io::Result<()> {
    let (path, text) = (folder.join(NOTE), note(uid, account));
    if fs::read_to_string(&path).is_ok_and(|noted| noted == text) {
        return Ok(());
    }
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(new, path)
}

/// The id of the folder with this owner's newest disk, of those that no machine in the state has. The account must be the
/// same: another person may have got the uid. Blocks.
pub(super) fn find(machines: &Path, known: &BTreeSet<MachineId>, uid: u32, account: Option<&str>) -> Option<MachineId> {
    let wanted = note(uid, account);
    let disk_of = |folder: fs::DirEntry| -> Option<(SystemTime, MachineId)> {
        let id: MachineId = folder.file_name().to_str()?.parse().ok()?;
        let noted = fs::read_to_string(folder.path().join(NOTE)).ok()?;
        let written = fs::metadata(folder.path().join(DISK)).ok()?.modified().ok()?;
        (noted == wanted && !known.contains(&id)).then_some((written, id))
    };
    let found = fs::read_dir(machines).ok()?.flatten().filter_map(disk_of).max();
    found.map(|(_, id)| id)
}

fn note(uid: u32, account: Option<&str>) -> String {
    format!("{uid} {}\n", account.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_gets_the_newest_disk_that_no_machine_has() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, uid, account, age_s| {
            let folder = dir.path().join(name);
            fs::create_dir(&folder).unwrap();
            note_owner(&folder, uid, account).unwrap();
            let disk = File::create(folder.join(DISK)).unwrap();
            disk.set_modified(SystemTime::now() - std::time::Duration::from_secs(age_s)).unwrap();
            name.parse::<MachineId>().unwrap()
        };
        let old = make("old", 7, Some("alice"), 100);
        let newer = make("newer", 7, Some("alice"), 10);
        let in_use = make("used", 7, Some("alice"), 1);
        let of_bob = make("bobs", 8, Some("bob"), 1);
        fs::create_dir(dir.path().join("empty")).unwrap();
        let known = |ids: &[MachineId]| ids.iter().copied().collect::<BTreeSet<_>>();
        let find = |ids: &[MachineId], uid, account| find(dir.path(), &known(ids), uid, account);
        assert_eq!(find(&[in_use], 7, Some("alice")), Some(newer));
        assert_eq!(find(&[in_use, newer], 7, Some("alice")), Some(old));
        assert_eq!(find(&[], 8, Some("bob")), Some(of_bob));
        assert_eq!(find(&[], 7, Some("eve")), None, "the uid belongs to another person");
        // A renamed account.
        note_owner(&dir.path().join("bobs"), 8, Some("robert")).unwrap();
        assert_eq!((find(&[], 8, Some("bob")), find(&[], 8, Some("robert"))), (None, Some(of_bob)));
    }
}
