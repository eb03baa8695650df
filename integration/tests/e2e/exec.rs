//! Commands in the container: streams apart and binary-safe, signals, terminals, exit status.

use std::fs;

use garret_integration::stage::{ALICE, Workspace};

#[test]
fn streams_are_apart_binary_safe_and_the_status_is_the_commands() {
    let workspace = Workspace::shared(ALICE);
    workspace.up(&[]).ok();

    let ran = workspace.sh("echo out; echo err >&2; exit 7");
    assert_eq!((ran.status, ran.out().as_str()), (7, "out\n"));
    assert!(ran.stderr.contains("err\n") && !ran.stderr.contains("out"), "{}", ran.stderr);

    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let ran = ALICE.garret_with(&["exec", workspace.str(), "--", "cat"], &[], &bytes);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stdout == bytes, "3 MB came back changed ({} bytes)", ran.stdout.len());

    // A signal's status as a shell shows it, and a program that is not there.
    assert_eq!(workspace.sh("kill -TERM $$").status, 143);
    assert_eq!(workspace.exec(&["no-such-program"]).status, 127);
}

#[test]
fn a_terminal_is_a_terminal_and_has_the_callers_size() {
    let workspace = Workspace::shared(ALICE);
    workspace.up(&[]).ok();
    let line = format!("stty rows 37 cols 91; garret exec '{}' -- sh -c 'tty; stty size'", workspace.str());
    let out = ALICE.run("script", &["-qec", &line, "/dev/null"], &[], b"").ok();
    assert!(out.contains("/dev/pts/") && out.contains("37 91"), "{out}");
    // Without one, the program sees none.
    assert!(workspace.sh("test -t 0 || echo none").ok().contains("none"));
}

#[test]
fn signals_reach_the_process_in_the_container() {
    let workspace = Workspace::shared(ALICE);
    workspace.up(&[]).ok();
    // The command creates a file in the workspace when it is ready. Then the host's side gets SIGTERM.
    let line = format!(
        "garret exec '{}' -- sh -c 'trap \"echo caught > caught; exit 9\" TERM; echo > ready; while :; do sleep 0.1; done' &\n\
         child=$!; until [ -e '{0}/ready' ]; do sleep 0.1; done; kill -TERM $child; wait $child",
        workspace.str()
    );
    let ran = ALICE.run("sh", &["-c", &line], &[], b"");
    assert_eq!(ran.status, 9, "{}", ran.stderr);
    assert_eq!(workspace.read("caught"), "caught\n");
}

#[test]
fn a_lost_connection_ends_the_process() {
    let workspace = Workspace::shared(ALICE);
    workspace.up(&[]).ok();
    let line = format!(
        "garret exec '{}' -- sh -c 'echo $$ > pid; exec sleep 1000' & child=$!; \
         until [ -s '{0}/pid' ]; do sleep 0.1; done; kill -KILL $child",
        workspace.str()
    );
    ALICE.run("sh", &["-c", &line], &[], b"");
    let pid = fs::read_to_string(workspace.path().join("pid")).unwrap();
    let gone = format!("for i in $(seq 100); do [ -e /proc/{} ] || exit 0; sleep 0.1; done; exit 1", pid.trim());
    workspace.sh(&gone).ok();
}

#[test]
fn unread_input_delays_no_interrupt() {
    let workspace = Workspace::shared(ALICE);
    workspace.up(&[]).ok();
    let line = format!(
        "cd '{}'; mkfifo pipe; cat /dev/zero >pipe &\n\
         sh -c 'echo $$ >client; exec garret exec . -- sh -c \"echo >ready; exec sleep 1000\"' <pipe &\n\
         client=$!; until [ -e ready ]; do sleep 0.1; done; sleep 2; kill -INT $(cat client); wait $client",
        workspace.str()
    );
    let ran = ALICE.run("sh", &["-c", &line], &[], b"");
    assert_eq!(ran.status, 130, "{}", ran.stderr);
}
