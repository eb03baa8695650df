//! One environment in the agent's memory.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use garret_api::{Code, Problem};
use tokio::sync::watch;

use super::journal::Journal;
use super::record::{Record, Store};
use crate::blocking::Blocking;

/// Writing one record.
static SAVE: Blocking = Blocking::new("writing to the machine's data disk", 32, Duration::from_secs(120));
/// Flushing the whole disk. One flush at a time is as fast as many.
static SYNC: Blocking = Blocking::new("writing to the machine's data disk", 1, Duration::from_secs(600));

/// One environment: its record, and its run of `up` while one is in progress.
#[derive(Debug)]
pub(super) struct Entry {
    pub id: String,
    store: Store,
    record: Mutex<Record>,
    /// Held while the record is written or removed, so that the newest record is written last. A disk that hangs holds
    /// it as long: only a thread that may block locks it.
    writing: Mutex<()>,
    /// Whether the record has been removed from the disk.
    removed: AtomicBool,
    run: Mutex<Option<RunHandle>>,
    /// Held while the environment's container is changed.
    pub gate: tokio::sync::Mutex<()>,
}

/// A handle to a run of `up` in progress.
#[derive(Clone, Debug)]
pub(super) struct RunHandle {
    pub generation: u64,
    pub journal: Arc<Journal>,
    cancel: Arc<watch::Sender<Option<&'static str>>>,
}

impl RunHandle {
    fn new(generation: u64) -> Self {
        Self { generation, journal: Journal::new(), cancel: Arc::new(watch::Sender::new(None)) }
    }

    /// Waits until the run is cancelled, and returns the reason.
    pub(super) async fn cancelled(&self) -> &'static str {
        let mut cancel = self.cancel.subscribe();
        cancel.wait_for(Option::is_some).await.ok().and_then(|reason| *reason).unwrap_or_default()
    }
}

impl Entry {
    pub(super) fn new(store: Store, record: Record) -> Arc<Self> {
        Arc::new(Self {
            id: record.id.clone(),
            store,
            record: Mutex::new(record),
            writing: Mutex::default(),
            removed: AtomicBool::default(),
            run: Mutex::default(),
            gate: Default::default(),
        })
    }

    pub(super) fn with<T>(&self, look: impl FnOnce(&Record) -> T) -> T {
        look(&lock(&self.record))
    }

    /// The id of the container in the record.
    pub(super) fn container_id(&self) -> Option<String> {
        self.with(|record| record.container.as_ref().map(|container| container.id.clone()))
    }

    /// Changes the record in memory and on the disk.
    ///
    /// # Errors
    /// The record could not be written to the disk; the record in memory has changed nevertheless.
    pub(super) async fn update<T>(self: &Arc<Self>, change: impl FnOnce(&mut Record) -> T) -> Result<(), Problem> {
        change(&mut lock(&self.record));
        let entry = self.clone();
        SAVE.run(move || entry.save()).await?.map_err(|error| disk_problem(&self.id, &error))
    }

    /// Flushes the whole data disk, which holds the containers and their images.
    pub(super) async fn sync_disk(&self) -> Result<(), Problem> {
        let store = self.store.clone();
        SYNC.run(move || store.sync_disk()).await?.map_err(|error| disk_problem(&self.id, &error))
    }

    fn save(&self) -> io::Result<()> {
        let _guard = lock(&self.writing);
        let record = lock(&self.record).clone();
        if self.is_removed() { Ok(()) } else { self.store.save(&record) }
    }

    /// Removes the record from the disk, permanently.
    pub(super) async fn delete_record(self: &Arc<Self>) -> Result<(), Problem> {
        let entry = self.clone();
        let delete = move || {
            let _guard = lock(&entry.writing);
            // A second removal, which waited for the first, may come after a new environment with this id.
            if entry.is_removed() {
                return Ok(());
            }
            entry.store.remove(&entry.id)?;
            entry.removed.store(true, Ordering::Release);
            Ok(())
        };
        SAVE.run(delete).await?.map_err(|error| disk_problem(&self.id, &error))
    }

    /// Makes an environment of this share from one that was removed.
    pub(super) async fn renew(self: &Arc<Self>, share: &str) -> Result<(), Problem> {
        let (entry, record) = (self.clone(), Record::new(&self.id, share));
        let renew = move || {
            let _guard = lock(&entry.writing);
            *lock(&entry.record) = record;
            entry.removed.store(false, Ordering::Release);
        };
        SAVE.run(renew).await
    }

    /// Whether the environment has been removed. A task that still holds it must not start it again.
    pub(super) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// Returns the run of `generation`, and whether it is new. A newer generation cancels the run in progress and
    /// replaces it.
    ///
    /// # Errors
    /// `conflict`: a newer generation has already started.
    pub(super) fn begin(&self, generation: u64) -> Result<(RunHandle, bool), Problem> {
        let mut run = lock(&self.run);
        let recorded = self.with(|record| record.generation);
        let newest = run.as_ref().map_or(recorded, |run| run.generation.max(recorded));
        if generation != 0 && generation < newest {
            return Err(outdated(&self.id, generation, newest));
        }
        if let Some(current) = &*run {
            if generation == 0 || generation == current.generation {
                return Ok((current.clone(), false));
            }
            current.cancel.send_replace(Some("a newer request replaced this run"));
        }
        let new = RunHandle::new(generation);
        *run = Some(new.clone());
        Ok((new, true))
    }

    /// Notes that the run `ended` is over.
    pub(super) fn end(&self, ended: &RunHandle) {
        lock(&self.run).take_if(|run| Arc::ptr_eq(&run.journal, &ended.journal));
    }

    /// Whether a run of `up` is in progress, or waits for the gate.
    pub(super) fn runs(&self) -> bool {
        lock(&self.run).is_some()
    }

    /// Cancels the run in progress, if there is one. To wait for its end, lock the gate.
    pub(super) fn cancel(&self) {
        if let Some(run) = &*lock(&self.run) {
            run.cancel.send_replace(Some("the environment was stopped while it was starting"));
        }
    }
}

fn outdated(id: &str, asked: u64, newest: u64) -> Problem {
    let message = format!(
        "run {asked} of environment {id} is older than run {newest}, which this machine knows; if the host has lost its \
         state, remove the environment with `garret rm` and bring it up again"
    );
    Problem::new(Code::Conflict, message)
}

fn disk_problem(id: &str, error: &io::Error) -> Problem {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => disk_full(),
        _ => Problem::new(Code::Internal, format!("the record of {id} cannot be written to the data disk: {error}")),
    }
}

/// The machine's data disk has no space left.
pub(super) fn disk_full() -> Problem {
    let to_do = "free space, for example with `garret exec --machine -- podman image prune --all`, and try again";
    Problem::new(Code::DiskFull, format!("the machine's data disk is full: {to_do}"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(folder: &std::path::Path) -> Arc<Entry> {
        Entry::new(Store::new(folder.join("environments")), Record::new("p-1", "p"))
    }

    #[tokio::test]
    async fn a_newer_generation_cancels_and_replaces() {
        let folder = tempfile::tempdir().unwrap();
        let entry = entry(folder.path());
        let (first, new) = entry.begin(3).unwrap();
        assert!(new);
        let (joined, new) = entry.begin(3).unwrap();
        assert!(!new && Arc::ptr_eq(&joined.journal, &first.journal));
        let (second, new) = entry.begin(4).unwrap();
        assert!(new && first.cancelled().await.contains("newer"));
        assert_eq!(entry.begin(3).unwrap_err().code, Code::Conflict);
        // The end of the replaced run does not end the current run.
        entry.end(&first);
        let (joined, new) = entry.begin(4).unwrap();
        assert!(!new && Arc::ptr_eq(&joined.journal, &second.journal));
        // A runner that sends no generation joins the run.
        assert!(!entry.begin(0).unwrap().1);
    }

    #[tokio::test]
    async fn an_older_generation_is_refused_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        entry(folder.path()).update(|record| record.generation = 7).await.unwrap();
        let store = Store::new(folder.path().join("environments"));
        let entry = Entry::new(store.clone(), store.load().remove(0));
        assert_eq!(entry.begin(6).unwrap_err().code, Code::Conflict);
        assert!(entry.begin(7).unwrap().1);
    }

    #[tokio::test]
    async fn a_removed_record_is_not_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let entry = entry(folder.path());
        entry.update(|_| ()).await.unwrap();
        entry.delete_record().await.unwrap();
        entry.update(|_| ()).await.unwrap();
        assert!(entry.is_removed() && Store::new(folder.path().join("environments")).load().is_empty());
    }

    #[tokio::test]
    async fn a_second_removal_leaves_the_next_environments_record() {
        let folder = tempfile::tempdir().unwrap();
        let (removed, next) = (entry(folder.path()), entry(folder.path()));
        removed.delete_record().await.unwrap();
        next.update(|_| ()).await.unwrap();
        removed.delete_record().await.unwrap();
        assert_eq!(Store::new(folder.path().join("environments")).load().len(), 1);
    }

    #[test]
    fn an_entry_can_be_read_while_the_disk_hangs() {
        let folder = tempfile::tempdir().unwrap();
        let entry = entry(folder.path());
        let _hanging = lock(&entry.writing);
        let (sender, answer) = std::sync::mpsc::channel();
        let reader = entry.clone();
        // A reader that waits for the disk must fail the test, not hang it.
        std::thread::spawn(move || sender.send((reader.is_removed(), reader.container_id())));
        assert_eq!(answer.recv_timeout(Duration::from_secs(30)), Ok((false, None)));
    }

    #[test]
    fn a_full_disk_is_named() {
        let full = io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        assert_eq!(disk_problem("p-1", &full).code, Code::DiskFull);
        assert_eq!(disk_problem("p-1", &io::ErrorKind::Other.into()).code, Code::Internal);
    }
}
