//! Says when the host's disk is full: the writes of its machines wait until there is space (see the VMM's block device), and
//! their developers see only that nothing moves.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use garret_api::Problem;
use garret_api::runner::Happening;

use super::Daemon;
use super::memory::Trouble;
use super::state::{events, machines};

/// How often the file system of the state and the data disks is looked at.
const INTERVAL: Duration = Duration::from_secs(5);
/// Less than this is full, in MiB: a machine writes it in a moment.
const FULL_MIB: u64 = 64;
/// More than this is space again, in MiB: the two lie apart so that it is not said at each turn.
const SPACE_MIB: u64 = 256;

/// Looks until the daemon ends.
pub async fn follow(daemon: Arc<Daemon>) {
    let problem = Trouble::of("the host's disk");
    let mut full = false;
    loop {
        match available_mib(&daemon.config.state) {
            Ok(available) => {
                let was_full = full;
                full = is_full(was_full, available);
                problem.note(full.then(|| "full: machines' writes wait until there is space".to_owned()));
                if full != was_full {
                    tell_machines(&daemon, full).await;
                }
            }
            Err(error) => problem.note(Some(format!("cannot look at {}: {error}", daemon.config.state.display()))),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Whether it counts as full, if it did or did not before.
fn is_full(before: bool, available_mib: u64) -> bool {
    available_mib < if before { SPACE_MIB } else { FULL_MIB }
}

/// What anyone but root can still write to the path's file system, in MiB.
fn available_mib(path: &Path) -> rustix::io::Result<u64> {
    let space = rustix::fs::statvfs(path)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize) >> 20)
}

/// An event for the developer of each machine that runs.
async fn tell_machines(daemon: &Daemon, full: bool) {
    let said = match full {
        true => "the host's disk is full: what the machine writes waits until an administrator makes space",
        false => "the host's disk has space again: the machine's writes continue",
    };
    let uids = daemon.live.borrow().clone();
    let written = daemon
        .write(move |db| {
            let problem = Problem::new("host-disk-full", said);
            for row in machines::all(db)?.into_iter().filter(|row| uids.contains(&row.uid)) {
                events::add(db, row.uid, None, &Happening::Problem { problem: problem.clone() })?;
            }
            Ok(())
        })
        .await;
    if let Err(error) = written {
        tracing::warn!("cannot write the event: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_full_until_there_is_clearly_more() {
        let told = [1000, 64, 63, 64, 255, 256, 70, 0, 300];
        let mut full = false;
        let seen = told.map(|available| {
            full = is_full(full, available);
            full
        });
        assert_eq!(seen, [false, false, true, true, true, false, false, true, false]);
        assert!(available_mib(Path::new("/")).is_ok());
    }
}
