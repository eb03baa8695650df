//! Data that a program has synced survives every orderly stop of its machine: a file and a SQLite
//! database in a container's own file system, and a PostgreSQL in a volume. Each record counts once its number has come
//! out of `garret exec` on the host.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::Value;

use crate::records::{Files, ROUND, Writer, lines};
use crate::vmm::{self, power_cuts};
use garret_integration::stage::{
    ALICE, BOB, Developer, Workspace, end_daemon, events, kill_daemon, start_daemon, wait_until,
};

#[test]
fn nothing_acknowledged_is_lost_however_a_machine_is_stopped() {
    let files = Files::up(ALICE, "files");
    let postgres = Postgres::up();
    let cuts = power_cuts();
    let ways = [stop, stop_while_the_daemon_is_killed, shut_the_host_down];
    for (round, stop_and_start) in ways.into_iter().enumerate() {
        let first = ROUND * round as u64;
        let writers = [files.write_from(first), postgres.write_from(first)];
        writers.iter().for_each(Writer::wait_for_enough);
        stop_and_start();
        for environment in [&files.0, &postgres.0] {
            wait_until("the environment is ready again", 120, || {
                environment.environment()["status"]["phase"] == "ready"
            });
        }
        let [to_files, to_postgres] = writers.map(Writer::end);
        to_files.is_in(&files.read());
        to_postgres.is_in(&postgres.read());
        // It was stopped by its own signal and ended in order: nothing to recover.
        let log = postgres.log();
        assert_eq!(log.matches("database system was shut down at").count(), round + 2, "{log}");
        assert!(!log.contains("automatic recovery"), "{log}");
        assert_eq!(power_cuts(), cuts);
    }
}

/// By a command, and starts it again.
fn stop() {
    ALICE.garret(&["stop", "--machine"]).ok();
    ALICE.garret(&["start", "--machine"]).ok();
}

/// The next daemon finds a machine that is half stopped, and paused as one of a host that is short of memory.
fn stop_while_the_daemon_is_killed() {
    // Asked while there is a daemon.
    let run_folder = ALICE.run_folder();
    std::thread::scope(|scope| {
        // The command's result does not matter: its daemon is killed.
        scope.spawn(|| ALICE.garret(&["stop", "--machine"]));
        wait_until("the machine stops", 10, || ALICE.machine()["phase"] == "stopping");
        kill_daemon();
        vmm::ask(&run_folder, "POST", "/v1/pause");
        let found = vmm::ask(&run_folder, "GET", "/v1/machine");
        start_daemon();
        assert!(found.contains(r#""state":"paused""#), "{found}");
    });
    wait_until("the machine is stopped", 60, || ALICE.machine()["phase"] == "stopped");
    ALICE.garret(&["start", "--machine"]).ok();
}

/// The host's service manager ends the daemon; asked by the daemon it says that it ends everything. The test host does
/// not really shut down, so that answer is given by a program that comes first in the daemon's path.
fn shut_the_host_down() {
    BOB.garret(&["start", "--machine"]).ok();
    let vmms = [ALICE, BOB].map(vmm::pid);
    let answer = PathBuf::from("/usr/local/sbin/systemctl");
    fs::write(&answer, "#!/bin/sh\n[ \"$1\" = is-system-running ] && echo stopping\n").expect("it writes");
    fs::set_permissions(&answer, PermissionsExt::from_mode(0o755)).expect("it is root's");
    end_daemon(100);
    fs::remove_file(&answer).expect("it is there");
    assert!(!vmms.into_iter().any(vmm::exists), "the daemon ended before a machine");
    // After the next boot; no client asks for the machines.
    start_daemon();
    let events = events();
    let last = |developer: Developer, phase: &str| last_event(&events, developer, phase);
    let [begun, ended] = ["stopping", "stopped"].map(|phase| [ALICE, BOB].map(|developer| last(developer, phase)));
    assert!(begun.iter().max() < ended.iter().min(), "one after the other: {begun:?} {ended:?}");
}

/// The number of the last event in which this developer's machine came to this phase.
#[track_caller]
fn last_event(events: &str, developer: Developer, phase: &str) -> u64 {
    let mut events = events.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")).rev();
    let of_phase = |event: &Value| event["developer"] == developer.name && event["what"]["phase"] == phase;
    events.find(of_phase).and_then(|event| event["id"].as_u64()).unwrap_or_else(|| panic!("no {phase}"))
}

/// The database of the public image, which serves it as the container's own command.
struct Postgres(Workspace);

impl Postgres {
    fn up() -> Self {
        // With an init: as process 1, the server takes another's killed child for one of its own and recovers from a
        // crash.
        let config = r#"{ "image": "postgres:17", "overrideCommand": false, "init": true,
            "containerEnv": { "POSTGRES_HOST_AUTH_METHOD": "trust", "PGHOST": "127.0.0.1", "PGUSER": "postgres" } }"#;
        let postgres = Self(Workspace::with_config(ALICE, "postgres", config));
        postgres.0.up(&[]).ok();
        postgres.ask("create table records (number bigint primary key)");
        postgres
    }

    /// An answer, once the server is up.
    fn ask(&self, question: &str) -> String {
        let line = "for i in $(seq 300); do pg_isready -q && break; sleep 0.2; done; exec psql -qAt -c \"$0\"";
        self.0.exec(&["sh", "-c", line, question]).ok()
    }

    fn write_from(&self, first: u64) -> Writer {
        let line =
            "n=$0; while echo \"insert into records values ($n) returning number;\"; do n=$((n + 1)); done | psql -qAt";
        Writer::start(&self.0, &["sh", "-c", line, &first.to_string()])
    }

    fn read(&self) -> BTreeSet<String> {
        lines(&self.ask("select number from records"))
    }

    fn log(&self) -> String {
        let ran = ALICE.garret(&["logs", self.0.str()]);
        ran.out() + &ran.stderr
    }
}
