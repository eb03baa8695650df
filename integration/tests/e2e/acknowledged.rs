//! Data that a program has synced survives every orderly stop of its machine: a file and a SQLite
//! database in a container's own file system, and a PostgreSQL in a volume. Each record counts once its number has come
//! out of `garret exec` on the host.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::records::{Files, ROUND, Writer, lines};
use garret_integration::stage::{ALICE, Workspace, end_daemon, kill_daemon, start_daemon, wait_until};

#[test]
fn nothing_acknowledged_is_lost_however_a_machine_is_stopped() {
    let files = Files::up(ALICE, "files");
    let postgres = Postgres::up();
    // A stop alone is in `full_disk`.
    let ways = [stop_while_the_daemon_is_killed, shut_the_host_down];
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
    }
}

fn stop_while_the_daemon_is_killed() {
    let vmm = ALICE.machine()["vmm_pid"].as_u64().expect("it runs");
    std::thread::scope(|scope| {
        // How the command ends, whose daemon dies, says nothing.
        scope.spawn(|| ALICE.garret(&["stop", "--machine"]));
        wait_until("the machine stops", 10, || ALICE.machine()["phase"] == "stopping");
        kill_daemon();
        let in_the_middle = Path::new(&format!("/proc/{vmm}")).exists();
        start_daemon();
        assert!(in_the_middle, "the machine had stopped before the daemon was killed");
    });
    wait_until("the machine is stopped", 60, || ALICE.machine()["phase"] == "stopped");
    ALICE.garret(&["start", "--machine"]).ok();
}

/// The host's service manager ends the daemon; asked by the daemon it says that it ends everything. The test host does
/// not really shut down, so that answer is given by a program that comes first in the daemon's path.
fn shut_the_host_down() {
    let vmm = ALICE.machine()["vmm_pid"].as_u64().expect("it runs");
    let answer = PathBuf::from("/usr/local/sbin/systemctl");
    fs::write(&answer, "#!/bin/sh\n[ \"$1\" = is-system-running ] && echo stopping\n").expect("it writes");
    fs::set_permissions(&answer, PermissionsExt::from_mode(0o755)).expect("it is root's");
    end_daemon(100);
    fs::remove_file(&answer).expect("it is there");
    assert!(!Path::new(&format!("/proc/{vmm}")).exists(), "the daemon ended before the machine");
    // After the next boot; no client asks for the machine.
    start_daemon();
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
