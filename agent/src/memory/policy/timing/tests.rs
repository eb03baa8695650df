use super::*;
use crate::memory::tuning::MIB;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn pauses_double_and_halve_again() {
    let mut backoff = Backoff::new(Pauses { first: seconds(10), max: seconds(60) });
    let mut now = seconds(0);
    let mut pauses = Vec::new();
    for _ in 0..5 {
        backoff.resisted(now);
        let begun = now;
        while backoff.pausing(now) {
            now += seconds(1);
        }
        pauses.push((now - begun).as_secs());
    }
    assert_eq!(pauses, [10, 20, 40, 60, 60]);
    // A minute of calm halves the pause once. The next halving needs half of that time.
    now += seconds(60);
    backoff.calm(now);
    assert_eq!(backoff.pause, seconds(30));
    now += seconds(29);
    backoff.calm(now);
    assert_eq!(backoff.pause, seconds(30));
    for _ in 0..100 {
        now += seconds(5);
        backoff.calm(now);
    }
    assert_eq!(backoff.pause, seconds(0));
}

#[test]
fn resistance_during_a_pause_makes_it_last_but_not_grow() {
    let mut backoff = Backoff::new(Pauses { first: seconds(10), max: seconds(60) });
    for now in 0..9 {
        backoff.resisted(seconds(now));
    }
    assert!(backoff.pausing(seconds(17)));
    assert!(!backoff.pausing(seconds(18)));
}

fn at(compaction: &mut Compaction, seconds: u64, fragmented: u64, squeezed: bool) -> bool {
    compaction.due(Duration::from_secs(seconds), fragmented * MIB, 1024 * MIB, squeezed)
}

#[test]
fn it_needs_much_fragmentation_and_a_pause() {
    let mut compaction = Compaction::default();
    assert!(!at(&mut compaction, 0, 15, false));
    assert!(at(&mut compaction, 1, 16, false));
    assert!(!at(&mut compaction, 2, 0, false));
    assert!(!at(&mut compaction, 60, 100, false));
    assert!(at(&mut compaction, 61, 100, false));
    assert!(!at(&mut compaction, 90, 0, true));
    assert!(at(&mut compaction, 91, 100, true));
}

#[test]
fn fragmentation_that_remained_is_no_reason_to_retry() {
    let mut compaction = Compaction::default();
    assert!(at(&mut compaction, 0, 100, false));
    assert!(!at(&mut compaction, 100, 90, false));
    assert!(!at(&mut compaction, 200, 105, false));
    assert!(at(&mut compaction, 300, 106, false));
    assert!(!at(&mut compaction, 400, 20, false));
    assert!(at(&mut compaction, 500, 36, false));
}
