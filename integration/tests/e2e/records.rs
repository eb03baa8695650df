//! Programs in containers that write records and say which of them are on their disk, and what is found there later.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Stdio};

use garret_integration::stage::{Developer, Workspace, wait_until};

/// Round `n` writes records from `n` million on: records of earlier rounds that were not acknowledged do not collide.
pub(crate) const ROUND: u64 = 1_000_000;
/// Of each kind, before anything is done to the machine.
const ENOUGH: usize = 10;

const WRITER: &str = r#"
import os, sqlite3, sys
os.chdir(os.path.expanduser("~"))
database = sqlite3.connect("records.db", isolation_level=None)
database.execute("pragma journal_mode = wal")
database.execute("pragma synchronous = full")
database.execute("create table if not exists records (number integer primary key)")
file = os.open("records", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
os.fsync(os.open(".", os.O_RDONLY))
os.write(file, b"\n")  # an earlier round may have ended within a line
number = int(sys.argv[1])
while True:
    line = b"%d\n" % number
    assert os.write(file, line) == len(line), "No space left for the whole line"
    os.fsync(file)
    print("file", number, flush=True)
    database.execute("insert into records values (?)", (number,))
    print("sqlite", number, flush=True)
    number += 1
"#;

const READER: &str = r#"
import os, sqlite3
os.chdir(os.path.expanduser("~"))
for line in open("records"):
    print("file", line, end="")
database = sqlite3.connect("records.db")
for number, in database.execute("select number from records"):
    print("sqlite", number)
print(*database.execute("pragma integrity_check").fetchone())
"#;

/// A container with a file and a SQLite database in its own file system.
pub(crate) struct Files(pub Workspace);

impl Files {
    pub(crate) fn up(developer: Developer, name: &str) -> Self {
        let workspace = Workspace::with_image(developer, name, "");
        workspace.up(&[]).ok();
        Self(workspace)
    }

    pub(crate) fn write_from(&self, first: u64) -> Writer {
        Writer::start(&self.0, &["python3", "-c", WRITER, &first.to_string()])
    }

    /// All that is there, of a database that is whole.
    pub(crate) fn read(&self) -> BTreeSet<String> {
        let found = lines(&self.0.exec(&["python3", "-c", READER]).ok());
        assert!(found.contains("ok"), "SQLite's integrity check: {found:?}");
        found
    }
}

/// A command in a container that prints a line for each record that it has synced to the disk.
pub(crate) struct Writer {
    command: Child,
    printed: tempfile::NamedTempFile,
    complaints: tempfile::NamedTempFile,
}

/// What a writer left.
pub(crate) struct Written {
    pub acknowledged: BTreeSet<String>,
    pub complaints: String,
}

impl Writer {
    pub(crate) fn start(workspace: &Workspace, command: &[&str]) -> Self {
        let [printed, complaints] = std::array::from_fn(|_| tempfile::NamedTempFile::new().expect("a file"));
        let mut exec = workspace.developer().command("garret", &[&["exec", workspace.str(), "--"], command].concat());
        exec.stdin(Stdio::null()).stdout(printed.reopen().expect("it opens"));
        let command = exec.stderr(complaints.reopen().expect("it opens")).spawn().expect("timeout(1) runs");
        Self { command, printed, complaints }
    }

    /// Waits until enough is acknowledged.
    pub(crate) fn wait_for_enough(&self) {
        wait_until("records are acknowledged", 60, || self.acknowledged().len() >= 2 * ENOUGH);
    }

    /// Waits until as many more are.
    pub(crate) fn wait_for_more(&self) {
        let before = self.acknowledged().len();
        wait_until("more records are acknowledged", 60, || self.acknowledged().len() >= before + 2 * ENOUGH);
    }

    fn acknowledged(&self) -> BTreeSet<String> {
        lines(&fs::read_to_string(self.printed.path()).expect("text"))
    }

    /// Waits for the command, which ends with its machine or at its first error.
    pub(crate) fn end(mut self) -> Written {
        self.command.wait().expect("it ends");
        let complaints = fs::read_to_string(self.complaints.path()).expect("text");
        Written { acknowledged: self.acknowledged(), complaints }
    }
}

impl Written {
    /// Asserts that all that was acknowledged has been found.
    #[track_caller]
    pub(crate) fn is_in(&self, found: &BTreeSet<String>) {
        let lost: Vec<_> = self.acknowledged.difference(found).collect();
        assert!(lost.is_empty(), "{} records were acknowledged and are lost: {lost:?}", lost.len());
    }
}

/// The whole lines.
pub(crate) fn lines(text: &str) -> BTreeSet<String> {
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned).collect()
}
