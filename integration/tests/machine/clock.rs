//! The guest's clock follows the host's.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::stage::{Machine, init_beside_after};

/// The time after `label` on the console, in nanoseconds.
fn told(machine: &mut Machine, label: &str) -> u128 {
    machine.wait_for(label, 1);
    machine
        .wait("a whole line", |machine| machine.console().split(label).nth(1).is_some_and(|rest| rest.contains('\n')));
    let console = machine.console();
    let line = console.split(label).nth(1).and_then(|rest| rest.lines().next()).expect("a line");
    line.trim().parse().unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos()
}

#[test]
fn clock_is_right_at_boot_and_becomes_right_again() {
    // The clock is wrong by decades before init starts, and again after init has run for a while.
    let wrong = "date -s @1000000000 >/dev/null;";
    let beside = format!(
        "echo at boot: $(date +%s%N); {wrong} until [ $(date +%s) -gt 1500000000 ]; do sleep 0.2; done; \
         echo again: $(date +%s%N)"
    );
    let started = now();
    let mut machine = Machine::start(init_beside_after(wrong, &beside));
    for label in ["at boot: ", "again: "] {
        let told = told(&mut machine, label);
        // Allows 10 ms: the host's clock is read later, and on another processor.
        assert!((started..now() + 10_000_000).contains(&told), "{label}{told} is not between {started} and {}", now());
    }
}
