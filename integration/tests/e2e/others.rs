//! What happens when several clients want different things, and when there should be two daemons.

use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use garret_integration::stage::{ALICE, Developer, Workspace, daemon_pid, send, wait_until};

const ROOT: Developer = Developer { name: "root", uid: 0 };

#[test]
fn up_ends_when_another_client_stops_or_removes_the_environment() {
    let workspace = Workspace::with_image(ALICE, "contested", r#", "postCreateCommand": "sleep 600""#);
    for (order, said) in [("stop", "was stopped"), ("rm", "was removed")] {
        let up = thread::scope(|scope| {
            let up = scope.spawn(|| ALICE.garret(&["up", "--rebuild", workspace.str()]));
            wait_until("the command runs", 300, || {
                let line = "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -q 'sleep [6]00'";
                ALICE.guest(line).status == 0
            });
            let id = workspace.environment()["id"].as_str().unwrap().to_owned();
            ROOT.garret(&[order, &id]).ok();
            wait_until("up ends", 30, || up.is_finished());
            up.join().unwrap()
        });
        up.fails_with(&[said]);
    }
}

#[test]
fn start_ends_when_another_client_stops_the_machine() {
    ALICE.garret(&["start", "--machine"]).ok();
    ALICE.garret(&["stop", "--machine"]).ok();
    let start = thread::scope(|scope| {
        let start = scope.spawn(|| ALICE.garret(&["start", "--machine"]));
        wait_until("the machine starts", 60, || ALICE.machine()["phase"] == "starting");
        ROOT.garret(&["stop", "--machine=alice"]).ok();
        start.join().unwrap()
    });
    start.fails_with(&["the machine did not start"]);
    ALICE.garret(&["start", "--machine"]).ok();
}

#[test]
fn a_second_daemon_ends_with_one_line_and_sighup_ends_none() {
    let second = Command::new("garret").args(["daemon", "--socket", "/run/garret/second.sock"]).output().unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.lines().count() == 1 && said.contains("another garret daemon uses /"), "{said}");
    let daemon = daemon_pid();
    send(daemon, Signal::HUP);
    thread::sleep(Duration::from_secs(2));
    assert_eq!(daemon_pid(), daemon);
    ALICE.garret(&["ls"]).ok();
}
