//! Open commands and terminals: who sees and ends them, and how many there may be.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::thread;

use serde_json::Value;

use garret_integration::stage::{ALICE, BOB, Developer, Workspace, wait_until};

/// The most of one account, as the daemon has it.
const OF_ACCOUNT_MAX: usize = 224;

fn streams(developer: Developer) -> Vec<Value> {
    developer.json(&["streams"]).as_array().expect("a list").clone()
}

#[test]
fn a_command_is_seen_and_ended_from_a_second_terminal() {
    let workspace = Workspace::shared(ALICE);
    workspace.up(&[]).ok();
    let id = workspace.environment()["id"].clone();
    let ended = thread::scope(|scope| {
        let command = scope.spawn(|| workspace.sh("echo begun; echo $$ > pid; exec sleep 1000"));
        wait_until("the command runs", 60, || workspace.path().join("pid").exists());
        let listed = streams(ALICE);
        let [stream] = &listed[..] else { panic!("{listed:?}") };
        assert_eq!((&stream["kind"], &stream["environment"]), (&"exec".into(), &id));
        assert_eq!((&stream["uid"], &stream["opened_by"]), (&ALICE.uid.into(), &ALICE.uid.into()));
        assert!(stream["from_guest_bytes"].as_u64() >= Some("begun\n".len() as u64), "{stream}");
        let table = ALICE.garret(&["streams"]).ok();
        let number = stream["id"].as_str().expect("text");
        assert!(table.lines().any(|line| line.starts_with(number) && line.contains("uid 1001")), "{table}");

        assert_eq!(streams(BOB), [Value::Null; 0]);
        BOB.garret(&["streams", "end", number]).fails_with(&["there is no stream"]);
        assert!(!command.is_finished());
        ALICE.garret(&["streams", "end", number]).ok();
        wait_until("the command ends", 10, || command.is_finished());
        assert_eq!(streams(ALICE), [Value::Null; 0]);
        command.join().expect("it ran")
    });
    assert_eq!(ended.out(), "begun\n");
    ended.fails_with(&["the stream ended: uid 1001 ended it"]);
    let gone = format!(
        "for i in $(seq 100); do [ -e /proc/{} ] || exit 0; sleep 0.1; done; exit 1",
        workspace.read("pid").trim()
    );
    workspace.sh(&gone).ok();
}

#[test]
fn a_developer_with_too_many_streams_gets_one_line() {
    ALICE.garret(&["start", "--machine"]).ok();
    let count = OF_ACCOUNT_MAX.to_string();
    let mut holder = ALICE.command("python3", &["-c", include_str!("hold.py"), &count]);
    let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 runs");
    let mut said = String::new();
    BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut said).expect("it says");
    assert_eq!(said, "held\n");
    assert_eq!(streams(ALICE).len(), OF_ACCOUNT_MAX);
    let refused = ALICE.guest("true").fails_with(&["this account has 224 streams open", "`garret streams end ID`"]);
    assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
    // Its end ends them all.
    drop(holder.stdin.take());
    assert!(holder.wait().expect("it ends").success());
    wait_until("the streams are gone", 30, || streams(ALICE).is_empty());
    ALICE.guest("true").ok();
}
