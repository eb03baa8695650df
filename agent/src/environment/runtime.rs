//! The OCI runtime's records of running containers. Reading them takes microseconds; a call of the engine costs a
//! process, a database and locks.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The folder in which podman lets crun keep its state. It is in memory, so a reboot clears it.
const ROOT: &str = "/run/crun";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Running {
    /// The guest's process id of its first process.
    pub pid: i32,
    pub started_at: String,
    /// The environment of its first process.
    pub env: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Status {
    pid: i32,
    created: String,
}

#[derive(Deserialize)]
struct Config {
    process: Process,
}

#[derive(Deserialize)]
struct Process {
    env: Vec<String>,
}

/// The container of this id, if it runs.
pub(super) fn running(id: &str) -> Option<Running> {
    running_in(Path::new(ROOT), id)
}

/// Whether the container of this id runs.
pub(super) fn is_running(id: &str) -> bool {
    status(&Path::new(ROOT).join(id)).is_some()
}

/// Whether any container may run. False only if there is no record, or each record names a process that is gone.
pub(super) fn any_container_may_run() -> bool {
    any_may_run_in(Path::new(ROOT))
}

fn any_may_run_in(root: &Path) -> bool {
    match std::fs::read_dir(root) {
        Ok(mut entries) => entries.any(|entry| !entry.is_ok_and(|entry| has_ended(&entry.path()))),
        Err(error) => error.kind() != ErrorKind::NotFound,
    }
}

/// Whether the process of this record is gone. False if the record cannot be read.
fn has_ended(folder: &Path) -> bool {
    read_status(folder).is_some_and(|status| !has_process(&status))
}

fn read_status(folder: &Path) -> Option<Status> {
    serde_json::from_slice(&std::fs::read(folder.join("status")).ok()?).ok()
}

fn has_process(status: &Status) -> bool {
    status.pid > 0 && root_of(status.pid).parent().is_some_and(Path::exists)
}

fn running_in(root: &Path, id: &str) -> Option<Running> {
    let folder = root.join(id);
    let Status { pid, created } = status(&folder)?;
    let config: Config = serde_json::from_slice(&std::fs::read(folder.join("config.json")).ok()?).ok()?;
    let pairs = config.process.env.iter().filter_map(|pair| pair.split_once('='));
    let env = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Some(Running { pid, started_at: created, env })
}

/// Reads a record. The engine removes it some time after the container's process has ended.
fn status(folder: &Path) -> Option<Status> {
    read_status(folder).filter(has_process)
}

/// A process's root folder, as a path of the guest.
pub(super) fn root_of(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_of_a_container_that_runs() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("ab");
        std::fs::create_dir(&folder).unwrap();
        let own = std::process::id();
        std::fs::write(folder.join("status"), format!(r#"{{"pid": {own}, "created": "t1", "rootfs": "x"}}"#)).unwrap();
        std::fs::write(folder.join("config.json"), r#"{"process": {"env": ["A=b=c", "B="], "cwd": "/"}}"#).unwrap();
        assert!(any_may_run_in(root.path()));
        let running = running_in(root.path(), "ab").unwrap();
        assert_eq!((running.pid, running.started_at.as_str()), (own as i32, "t1"));
        assert_eq!((running.env["A"].as_str(), running.env["B"].as_str()), ("b=c", ""));
    }

    #[test]
    fn no_notes_or_no_process_is_no_container() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(running_in(root.path(), "ab"), None);
        std::fs::create_dir(root.path().join("ab")).unwrap();
        for status in ["", "{}", r#"{"pid": 0, "created": "t"}"#, r#"{"pid": 2147483647, "created": "t"}"#] {
            std::fs::write(root.path().join("ab/status"), status).unwrap();
            assert_eq!(running_in(root.path(), "ab"), None, "{status}");
            assert_eq!(any_may_run_in(root.path()), !status.contains("pid"), "{status}");
        }
    }
}
