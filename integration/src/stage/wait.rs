//! Waits that fail the test at their deadline.

use std::time::Duration;

/// Deadlines are for an idle machine. Others are up to three times slower.
pub const SLOWER: u32 = 3;

/// Polls `condition` ten times a second until it holds. Fails the test after `seconds` times [`SLOWER`].
#[track_caller]
pub fn wait_until(what: &str, seconds: u32, mut condition: impl FnMut() -> bool) {
    for _ in 0..seconds * SLOWER * 10 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{what}: not within {} s", seconds * SLOWER);
}
