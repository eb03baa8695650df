//! Promises and figures that the host rejects.

use crate::team::{MIB, NEWCOMER, PROMISED_MIB, TEAM, Team, top};
use garret_integration::stage::{BOB, Developer};

const ROOT: Developer = Developer { name: "root", uid: 0 };

#[test]
fn beyond_memory_and_swap_a_machine_is_refused_with_numbers() {
    let team = Team::assemble();
    let host = top()["host"].clone();
    // The runner rounds each of the two down.
    let there = host["total"].as_u64().unwrap() / MIB + host["swap_total"].as_u64().unwrap() / MIB;
    let promised = u64::from(PROMISED_MIB) * TEAM.len() as u64;
    assert_eq!(host["promised"].as_u64().unwrap() / MIB, promised);
    assert!(host["overcommit"].as_f64().unwrap() > 3.0, "{host}");
    let asked = (there - promised + 100).to_string();
    NEWCOMER.make_account();
    NEWCOMER.garret(&["start", "--machine", "--memory", &asked]).fails_with(&[
        &format!("{asked} MiB"),
        "are already promised",
        &there.to_string(),
    ]);
    // Memory that only this machine may use is not available either.
    NEWCOMER
        .garret(&["start", "--machine", "--memory", "1700", "--guaranteed", "1600"])
        .fails_with(&["1600 MiB", "are already guaranteed to 4 others"]);
    let _made_by_the_request = NEWCOMER.garret(&["rm", "--machine", "--yes"]);
    team.all_well();
}

#[test]
fn figures_out_of_range_are_one_clear_line() {
    let _team = Team::assemble();
    for (arguments, words) in [
        (["--memory", "255"], ["memory_mib", "256"]),
        (["--guaranteed", "100"], ["guaranteed_mib", "256"]),
        (["--guaranteed", "5000"], ["guaranteed_mib", "1792"]),
    ] {
        BOB.garret(&[&["start", "--machine"], &arguments[..]].concat()).fails_with(&words);
    }
    BOB.garret(&["start", "--machine", "--weight", "200"]).fails_with(&["weight"]);
    ROOT.garret(&["start", "--machine=bob", "--weight", "0"]).fails_with(&["weight", "1", "10000"]);
}
