//! What machines leave on a host: counted before the first and after the last.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

/// The kernel removes namespaces and control groups in its own time.
const GONE_WITHIN_S: u64 = 60;
/// What the first machine of a host makes, and all others use.
const SHARED: [&str; 4] =
    ["file /run/garret/machines", "file /run/garret/revocations", "file /var/lib/garret/machines", "mount /run/netns"];

/// Everything of these kinds, a line each.
pub(crate) struct Census(BTreeSet<String>);

impl Census {
    pub(crate) fn take() -> Self {
        let mut all = BTreeSet::new();
        // Without indexes and counters, which change by themselves.
        all.extend(printed("link", "ip", &["-o", "link"], |line| line.split(": ").nth(1)));
        all.extend(printed("namespace", "ip", &["netns", "list"], |line| line.split(' ').next()));
        all.extend(printed("route", "ip", &["route", "show", "table", "all"], whole));
        all.extend(printed("rule", "nft", &["--stateless", "list", "ruleset"], not_counted));
        all.extend(printed("mount", "findmnt", &["--list", "--noheadings", "--output", "TARGET"], whole));
        all.extend(printed("process", "ps", &["-eo", "args="], |line| line.contains("garret").then_some(line)));
        for root in ["/sys/fs/cgroup/garret", "/run/garret", "/var/lib/garret"] {
            paths(Path::new(root), &mut all);
        }
        Self(all)
    }

    #[track_caller]
    pub(crate) fn assert_nothing_remains(&self) {
        let mut left = Vec::new();
        for _ in 0..GONE_WITHIN_S {
            left =
                Self::take().0.difference(&self.0).filter(|line| !SHARED.contains(&line.as_str())).cloned().collect();
            if left.is_empty() {
                return;
            }
            sleep(Duration::from_secs(1));
        }
        panic!("left behind: {left:#?}");
    }
}

fn printed(kind: &str, program: &str, arguments: &[&str], part: fn(&str) -> Option<&str>) -> Vec<String> {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().filter_map(part).map(|line| format!("{kind} {}", line.trim())).collect()
}

fn whole(line: &str) -> Option<&str> {
    Some(line)
}

/// A line of the rules. Counts of connections stay with a slot's address: the connections may outlive the machine.
fn not_counted(line: &str) -> Option<&str> {
    (!line.contains("ct count over") && !line.contains("limit rate over")).then_some(line)
}

/// Files and folders below `folder`. Control groups have files of their own, and the database comes with helpers.
fn paths(folder: &Path, all: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let counts = is_folder || !(path.starts_with("/sys") || path.to_string_lossy().contains("/state.db"));
        if counts {
            all.insert(format!("file {}", path.display()));
        }
        if is_folder {
            paths(&path, all);
        }
    }
}
