//! Loads that the runner cannot predict.

use crate::team::{Detached, GUARANTEED_MIB, Load, TEAM, Team, machine, mib, release, shortages, top, wait_slowly};
use garret_integration::stage::restart_daemon;

/// More than half of the host's memory.
const BURST_MIB: u32 = 900;
/// Four of these exceed the host's memory, three do not. The excess is small: the emulator takes a tenth of a
/// millisecond for each page that is swapped.
const SHARE_MIB: u32 = 360;

#[test]
fn consecutive_bursts_get_memory_and_return_it() {
    let team = Team::assemble();
    for developer in TEAM {
        let before = mib(&developer, "resident");
        Load::start(developer, BURST_MIB, 2).right();
        wait_slowly("the memory is back", 60, || mib(&developer, "resident") < before + u64::from(BURST_MIB) / 4);
    }
    team.all_well();
}

#[test]
fn simultaneous_bursts_survive_a_restart_of_the_runner() {
    let team = Team::assemble();
    let before = shortages();
    // The daemon's end closes every stream through it, so these loads run without a connection.
    let loads: Vec<_> = TEAM.iter().map(|developer| Detached::hold(*developer, SHARE_MIB)).collect();
    wait_slowly("the host is short of memory", 120, || shortages() > before);
    restart_daemon();
    // The new runner measures all machines again.
    wait_slowly("all machines are seen again", 30, || {
        top()["machines"].as_array().expect("a list").len() == TEAM.len()
    });
    for developer in TEAM {
        let machine = machine(&developer);
        assert!(machine["target"].as_u64() >= machine["guaranteed"].as_u64(), "{machine}");
        assert_eq!(machine["guaranteed"].as_u64().map(|bytes| bytes >> 20), Some(GUARANTEED_MIB.into()));
    }
    for (developer, load) in TEAM.iter().zip(loads) {
        release(developer);
        load.right();
    }
    team.all_well();
}

#[test]
fn simultaneous_loads_stay_intact_while_one_machine_stops() {
    let team = Team::assemble();
    let (before, (stopped, others)) = (shortages(), TEAM.split_last().expect("four"));
    let squeezed = Load::hold(*stopped, SHARE_MIB);
    let loads: Vec<_> = others.iter().map(|developer| Load::hold(*developer, SHARE_MIB)).collect();
    wait_slowly("the host is short of memory", 120, || shortages() > before);
    stopped.garret(&["stop", "--machine"]).ok();
    assert_eq!(stopped.machine()["phase"], "stopped");
    for (developer, load) in others.iter().zip(loads) {
        release(developer);
        load.right();
    }
    team.nothing_killed();
    // Its connection ended with the machine.
    drop(squeezed);
    stopped.garret(&["start", "--machine"]).ok();
}
