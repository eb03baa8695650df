//! Time in the workspace: the host stamps its files, the guest's clock tells `make` what is newer.

use garret_integration::stage::{ALICE, Workspace};

/// Nanoseconds by which a file's time may differ: both kernels stamp with the time of their last timer interrupt.
const TOLERANCE: u64 = 10_000_000;

#[test]
fn new_file_has_the_time_of_the_guests_clock() {
    let workspace = Workspace::shared(ALICE);
    workspace.up(&[]).ok();
    let line = "for name in 1 2 3 4 5; do before=$(date +%s%N); : > $name; after=$(date +%s%N); \
                echo $before $(stat -c %.9Y $name | tr -d .) $after; done";
    let out = workspace.sh(line).ok();
    let times: Vec<Vec<u64>> = out
        .lines()
        .map(|line| line.split(' ').map(|time| time.parse().unwrap_or_else(|error| panic!("{error}: {out}"))).collect())
        .collect();
    assert_eq!(times.len(), 5, "{out}");
    for time in times {
        let [before, file, after] = time[..] else { panic!("{out}") };
        assert!((before - TOLERANCE..after + TOLERANCE).contains(&file), "{out}");
    }
}
