//! What `garret top`, the events and the metrics show.

use std::process::Command;

use crate::team::{MIB, SOCKET, TEAM, Team, events, top, wait_slowly};
use garret_integration::stage::{ALICE, Developer};

/// An idle machine holds about 60 MiB. Its guest touches a quarter of that from time to time.
const AT_REST: u64 = 40 * MIB;

#[test]
fn top_shows_everything_to_root_and_each_developer_their_own() {
    let team = Team::assemble();
    // A guest that was paused in an earlier test may not have reported since.
    let mut all = top();
    wait_slowly("every guest reports its pressure", 30, || {
        all = top();
        let reports = all["machines"].as_array().unwrap().iter().all(|machine| machine["pressure_some"].is_number());
        if !reports {
            println!("{all}");
        }
        reports
    });
    assert_eq!(all["machines"].as_array().unwrap().len(), TEAM.len(), "{all}");
    for machine in all["machines"].as_array().unwrap() {
        let figure = |name: &str| machine[name].as_u64().unwrap_or_else(|| panic!("no {name} in {machine}"));
        assert!(figure("resident") > 0 && figure("limit") <= figure("promised"), "{machine}");
        assert!(figure("target") >= figure("guaranteed"), "{machine}");
    }
    let own = ALICE.json(&["top"]);
    let names: Vec<_> = own["machines"].as_array().unwrap().iter().map(|one| &one["developer"]).collect();
    assert_eq!(names, ["alice"]);
    let text = Developer { name: "root", uid: 0 }.garret(&["top"]).ok();
    assert!(text.contains("PROMISED") && TEAM.iter().all(|one| text.contains(one.name)), "{text}");
    team.all_well();
}

#[test]
fn metrics_have_the_same_figures() {
    let team = Team::assemble();
    let socket = ["--unix-socket", SOCKET, "-sS", "-w", "%{http_code}", "http://garret/metrics"];
    let output = Command::new("curl").args(socket).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.ends_with("200"), "{text}");
    assert!(text.contains("# TYPE ") && text.contains("developer=\"alice\""), "{text}");
    for developer in TEAM {
        let name = developer.name;
        assert!(text.contains(&format!("garret_vmm_up{{developer=\"{name}\"}} 1\n")), "{name}: {text}");
        // A machine whose devices and exits had other names would be missing here.
        for series in ["device_requests_total", "device_bytes_total", "exits_total"] {
            let prefix = format!("garret_vmm_{series}{{developer=\"{name}\"");
            let sum: u64 = text.lines().filter(|line| line.starts_with(&prefix)).filter_map(value).sum();
            assert!(sum > 0, "{name}, {series}: {text}");
        }
    }
    let shown = ALICE.garret(&["show", "--machine"]).ok();
    assert!(shown.contains("disk:") && shown.contains("network:") && !shown.contains("faults"), "{shown}");
    let denied = ALICE.run("curl", &socket, &[], b"").ok();
    assert!(denied.ends_with("403"), "{denied}");
    team.all_well();
}

/// The value of a sample.
fn value(line: &str) -> Option<u64> {
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn an_idle_machine_shrinks_to_what_it_touches_and_wakes() {
    let team = Team::assemble();
    wait_slowly("all machines are at rest", 240, || {
        let top = top();
        top["machines"].as_array().unwrap().iter().all(|one| one["resident"].as_u64().unwrap() < AT_REST)
    });
    let events = events(&ALICE);
    assert!(events.contains("this machine has been idle for"), "{events}");
    assert_eq!(ALICE.guest("echo awake").ok(), "awake\n");
    team.all_well();
}
