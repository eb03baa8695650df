//! Waits that fail the test at their end.

use std::time::Duration;

/// Limits on waiting are for an idle machine; others are up to three times slower.
pub const SLOWER: u32 = 3;

/// Waits until `condition` holds, looking ten times a second; fails the test after `seconds`, times [`SLOWER`].
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
