use std::sync::{Arc, Mutex};

use garret_api::agent::{EnvironmentPhase, EnvironmentStatus, Progress};
use garret_api::runner::{Desired, EventKind, MachinePhase, Operation, OperationKind};

use super::events::EVENTS_MAX;
use super::*;
use crate::daemon::testing::id;

/// The machine of the developer with this uid.
pub(crate) fn machine(uid: u32) -> MachineRow {
    MachineRow {
        id: id(uid),
        owner: uid,
        gid: uid,
        developer: format!("dev{uid}"),
        account: Some(format!("dev{uid}")),
        home: Some(format!("/home/dev{uid}").into()),
        slot: uid as u16,
        desired: Desired::Stopped,
        removed: false,
        vcpus: 1,
        memory_mib: 512,
        guaranteed_mib: 256,
        weight: 100,
        phase: MachinePhase::Stopped,
        reason: "new".into(),
        since: 1,
        vmm: None,
    }
}

/// In the machine of the developer with this uid.
pub(crate) fn environment(uid: u32, name: &str) -> EnvironmentRow {
    EnvironmentRow {
        id: name.into(),
        machine: id(uid),
        workspace: format!("/w/{name}").into(),
        config: None,
        local_env: [("LANG".to_string(), "C".to_string())].into(),
        desired: Desired::Running,
        rebuild: true,
        rebuild_key: None,
        removed: false,
        generation: 1,
        observed_generation: 0,
        status: EnvironmentStatus {
            id: name.into(),
            phase: EnvironmentPhase::Starting,
            container_id: None,
            remote_user: None,
            workspace_folder: None,
            problem: None,
        },
    }
}

/// On the machine of developer 7.
pub(crate) fn operation(kind: OperationKind) -> Operation {
    Operation {
        id: "0123456789abcdef0123456789abcdef".into(),
        kind,
        machine: id(7),
        developer: "dev7".into(),
        uid: 7,
        environment: None,
        generation: None,
        requested_by: 7,
        begun_ms: 1000,
        deadline_ms: None,
        step: None,
        ended_ms: None,
        outcome: None,
    }
}

/// The state of one test; it is never closed.
pub(crate) fn memory() -> WriteTx<'static> {
    let mut connection = Connection::open_in_memory().unwrap();
    schema::prepare(&mut connection).unwrap();
    WriteTx::new(Box::leak(Box::new(connection)))
}

/// Makes writes fail, as on a full disk.
pub(crate) fn refuse_writes(db: &WriteTx<'_>, refuse: bool) -> rusqlite::Result<()> {
    db.change(&format!("PRAGMA query_only = {refuse}"))?.execute([]).map(drop)
}

#[test]
fn a_reader_cannot_write() {
    let db = memory();
    machines::put(&db, &machine(7)).unwrap();
    let reader: &ReadTx<'_> = &db;
    for statement in ["DELETE FROM machines", "UPDATE machines SET owner = 8 RETURNING owner", "DROP TABLE events"] {
        assert!(matches!(reader.select(statement), Err(rusqlite::Error::InvalidQuery)), "{statement}");
    }
    assert_eq!(machines::all(&db).unwrap(), [machine(7)]);
}

#[test]
fn a_written_row_is_read_back() {
    let db = memory();
    let mut row = machine(7);
    machines::put(&db, &row).unwrap();
    row.vmm = Some(VmmId { pid: 4, started: 5, boot_id: "b".into() });
    machines::set_vmm(&db, id(7), row.vmm.as_ref()).unwrap();
    assert_eq!(machines::get(&db, id(7)).unwrap().as_ref(), Some(&row));
    assert_eq!(machines::by_developer(&db, "dev7").unwrap(), Some(row));
    let environment = environment(7, "a-1");
    environments::put(&db, &environment).unwrap();
    assert_eq!(environments::get(&db, "a-1").unwrap(), Some(environment));
}

#[test]
fn a_name_is_shown_for_the_machine_that_has_it_now() {
    let db = memory();
    machines::put(&db, &machine(1)).unwrap();
    machines::put(&db, &machine(2)).unwrap();
    let renamed = MachineRow { developer: "dev1".into(), account: Some("dev1".into()), ..machine(2) };
    machines::set_developer(&db, &renamed).unwrap();
    let row = |uid| machines::of_owner(&db, uid).unwrap().unwrap();
    assert_eq!((row(1).developer.as_str(), row(1).id, row(1).account.as_deref()), ("1", id(1), Some("dev1")));
    assert_eq!((row(2).developer.as_str(), row(2).id), ("dev1", id(2)));
    assert_eq!(machines::by_developer(&db, "dev1").unwrap().unwrap().id, id(2));
    machines::set_phase(&db, id(2), MachinePhase::Starting, "asked").unwrap();
    assert_eq!(events::after(&db, 0, &Scope::All).unwrap()[0].developer, "dev1");
}

#[test]
fn a_request_does_not_touch_what_was_observed() {
    let db = memory();
    machines::put(&db, &machine(7)).unwrap();
    machines::set_phase(&db, id(7), MachinePhase::Running, "running").unwrap();
    machines::put(&db, &MachineRow { vcpus: 4, ..machine(7) }).unwrap();
    let row = machines::get(&db, id(7)).unwrap().unwrap();
    assert_eq!((row.vcpus, row.phase, row.reason.as_str()), (4, MachinePhase::Running, "running"));
}

#[test]
fn a_text_without_bounds_is_not_kept() {
    let db = memory();
    machines::put(&db, &machine(7)).unwrap();
    let row = environment(7, "e");
    environments::put(&db, &row).unwrap();
    let problem = garret_api::Problem::new(Code::Internal, "x".repeat(TEXT_MAX));
    let status = EnvironmentStatus { problem: Some(problem.clone()), ..row.status.clone() };
    let large = EnvironmentRow { status: status.clone(), ..row.clone() };
    let last = EventKind::Stopped { generation: 1 };
    for refused in [
        events::add(&db, id(7), Some("e"), &EventKind::Problem { problem }),
        environments::observe(&db, &row, &status),
        environments::put(&db, &large),
        environments::end_run(&db, &large, &last).map(drop),
    ] {
        let said = refused.unwrap_err().to_string();
        assert!(said.contains("is too large for the state"), "{said}");
    }
    assert_eq!(environments::get(&db, "e").unwrap(), Some(row));
}

#[test]
fn slots_are_unique_and_reused() {
    let db = memory();
    for uid in [0, 1, 3] {
        machines::put(&db, &machine(uid)).unwrap();
    }
    assert_eq!(machines::free_slot(&db, 16).unwrap(), Some(2));
    assert_eq!(machines::free_slot(&db, 2).unwrap(), None);
    machines::forget(&db, id(0)).unwrap();
    assert_eq!(machines::free_slot(&db, 2).unwrap(), Some(0));
}

#[test]
fn an_id_of_another_developer_is_not_written() {
    let db = memory();
    machines::put(&db, &machine(7)).unwrap();
    machines::put(&db, &machine(8)).unwrap();
    environments::put(&db, &environment(7, "a")).unwrap();
    let theirs = EnvironmentRow { generation: 9, ..environment(8, "a") };
    assert!(environments::put(&db, &theirs).is_err());
    let ready = EnvironmentRow { generation: 1, ..theirs.clone() };
    assert!(!environments::end_run(&db, &ready, &EventKind::Stopped { generation: 1 }).unwrap());
    environments::observe(&db, &EnvironmentRow { generation: 0, ..theirs.clone() }, &theirs.status).unwrap();
    environments::add_progress(&db, &ready, Progress::Started { step: "x".into() }).unwrap();
    environments::remove(&db, id(8), "a").unwrap();
    environments::forget(&db, &EnvironmentRow { generation: 1, removed: true, ..theirs }).unwrap();
    assert_eq!(environments::get(&db, "a").unwrap(), Some(environment(7, "a")));
    assert_eq!(happened(&db), []);
}

fn happened(db: &WriteTx<'_>) -> Vec<EventKind> {
    events::after(db, 0, &Scope::All).unwrap().into_iter().map(|event| event.what).collect()
}

/// The final events, as `generation: result`.
fn finals(db: &WriteTx<'_>) -> Vec<String> {
    let last = |what| match what {
        EventKind::Environment { generation, progress: Progress::Ready { .. } } => Some(format!("{generation}: ready")),
        EventKind::Environment { generation, progress: Progress::Failed { problem, .. } } => {
            let code = serde_json::to_value(problem.code).unwrap();
            Some(format!("{generation}: {}", code.as_str().unwrap()))
        }
        EventKind::Stopped { generation } => Some(format!("{generation}: stopped")),
        EventKind::Removed { generation } => Some(format!("{generation}: removed")),
        _ => None,
    };
    happened(db).into_iter().filter_map(last).collect()
}

#[test]
fn a_run_ends_once_and_nothing_follows_its_end() {
    let db = memory();
    machines::put(&db, &machine(7)).unwrap();
    let row = environment(7, "a");
    environments::put(&db, &row).unwrap();
    let ready = EnvironmentStatus { phase: EnvironmentPhase::Ready, ..row.status.clone() };
    let done = EnvironmentRow { status: ready.clone(), rebuild: false, ..row.clone() };
    let last = EventKind::Environment { generation: 1, progress: Progress::Ready { environment: ready.clone() } };
    assert!(environments::end_run(&db, &done, &last).unwrap());
    assert!(!environments::end_run(&db, &done, &last).unwrap());
    environments::add_progress(&db, &row, Progress::Started { step: "late".into() }).unwrap();
    let kept = environments::get(&db, "a").unwrap().unwrap();
    assert!(kept.settled() && !kept.rebuild && kept.status == ready);
    assert_eq!(happened(&db), [last]);
}

#[test]
fn a_replaced_run_is_cancelled_and_its_end_changes_nothing() {
    let db = memory();
    machines::put(&db, &machine(7)).unwrap();
    let old = environment(7, "a");
    environments::put(&db, &old).unwrap();
    environments::cancel_run(&db, &old, "another run was asked for").unwrap();
    environments::put(&db, &EnvironmentRow { generation: 2, ..old.clone() }).unwrap();
    let last = EventKind::Environment { generation: 1, progress: Progress::Ready { environment: old.status.clone() } };
    assert!(!environments::end_run(&db, &old, &last).unwrap());
    environments::add_progress(&db, &old, Progress::Started { step: "late".into() }).unwrap();
    assert!(!environments::get(&db, "a").unwrap().unwrap().settled());
    assert_eq!(finals(&db), ["1: cancelled"]);
    assert_eq!(happened(&db).len(), 1);
}

#[test]
fn a_removal_cancels_the_run_and_has_one_event() {
    let db = memory();
    machines::put(&db, &machine(7)).unwrap();
    environments::put(&db, &environment(7, "a")).unwrap();
    environments::remove(&db, id(7), "a").unwrap();
    environments::remove(&db, id(7), "a").unwrap();
    environments::end_all(&db, id(7), None, false).unwrap();
    let removed = environments::get(&db, "a").unwrap().unwrap();
    assert!(removed.removed);
    let scope = Scope::Environment(id(7), "a".into());
    assert!(scope_end::is_over(&db, &scope).unwrap());
    environments::forget(&db, &removed).unwrap();
    environments::forget(&db, &removed).unwrap();
    assert_eq!(finals(&db), ["1: cancelled", "1: removed"]);
}

#[test]
fn an_environment_asked_for_again_is_not_forgotten() {
    let db = memory();
    machines::put(&db, &machine(7)).unwrap();
    let removed = EnvironmentRow { removed: true, observed_generation: 1, ..environment(7, "a") };
    environments::put(&db, &EnvironmentRow { generation: 2, removed: false, ..removed.clone() }).unwrap();
    environments::forget(&db, &removed).unwrap();
    assert_eq!(environments::get(&db, "a").unwrap().unwrap().generation, 2);
    assert_eq!(finals(&db), [""; 0]);
}

#[test]
fn a_start_begins_runs_and_an_end_fails_the_waiting_ones() {
    let db = memory();
    machines::put(&db, &machine(7)).unwrap();
    environments::put(&db, &EnvironmentRow { observed_generation: 1, ..environment(7, "ran") }).unwrap();
    environments::put(&db, &environment(7, "asked")).unwrap();
    environments::put(&db, &EnvironmentRow { desired: Desired::Stopped, ..environment(7, "still") }).unwrap();
    let begun = environments::begin_all(&db, id(7)).unwrap();
    let generations: Vec<_> = begun.iter().map(|row| (row.id.as_str(), row.generation)).collect();
    assert_eq!(generations, [("asked", 1), ("ran", 2)]);

    let problem = garret_api::Problem::new(Code::MachineFailed, "guest kernel panic");
    environments::end_all(&db, id(7), Some(&problem), true).unwrap();
    assert_eq!(finals(&db), ["1: stopped"], "it starts again: what should run has not ended");
    assert!(!environments::get(&db, "asked").unwrap().unwrap().settled());
    environments::end_all(&db, id(7), Some(&problem), false).unwrap();
    let events = events::after(&db, 0, &Scope::All).unwrap();
    let told: Vec<_> = events.iter().filter_map(|event| event.environment.as_deref()).collect();
    assert_eq!(told, ["still", "asked", "ran"]);
    assert_eq!(finals(&db), ["1: stopped", "1: machine-failed", "2: machine-failed"]);
    for row in environments::of_machine(&db, id(7)).unwrap() {
        assert!(row.settled());
        assert_eq!(row.status.phase, EnvironmentPhase::Stopped);
    }
}

#[test]
fn a_stop_that_failed_is_done_when_the_machine_ends() {
    let db = memory();
    machines::put(&db, &machine(7)).unwrap();
    environments::put(&db, &environment(7, "up")).unwrap();
    environments::put(&db, &EnvironmentRow { desired: Desired::Stopped, ..environment(7, "stop") }).unwrap();
    environments::put(&db, &EnvironmentRow { removed: true, ..environment(7, "rm") }).unwrap();
    let problem = garret_api::Problem::new(Code::Unavailable, "no answer");
    let phases = || -> Vec<_> {
        let rows = environments::of_machine(&db, id(7)).unwrap().into_iter();
        rows.map(|row| (row.id.clone(), row.settled(), row.status.phase)).collect()
    };
    use EnvironmentPhase::{Failed, Starting, Stopped};
    environments::fail_all(&db, id(7), &problem).unwrap();
    environments::fail_all(&db, id(7), &problem).unwrap();
    assert_eq!(finals(&db), ["1: unavailable", "1: unavailable"]);
    let expected = |stop| [("rm", false, Starting), ("stop", true, stop), ("up", true, Failed)];
    assert_eq!(phases(), expected(Failed).map(|(id, settled, phase)| (id.to_string(), settled, phase)));
    let rm = environments::get(&db, "rm").unwrap().unwrap();
    environments::forget(&db, &rm).unwrap();
    environments::end_all(&db, id(7), None, false).unwrap();
    assert_eq!(phases(), expected(Stopped).map(|(id, settled, phase)| (id.to_string(), settled, phase))[1..]);
}

#[test]
fn events_are_bounded_per_developer() {
    let db = memory();
    machines::put(&db, &machine(1)).unwrap();
    machines::put(&db, &machine(2)).unwrap();
    let what = |step: &str| EventKind::Environment { generation: 1, progress: Progress::Started { step: step.into() } };
    events::add(&db, id(2), Some("quiet"), &what("kept")).unwrap();
    for _ in 0..EVENTS_MAX + 500 {
        events::add(&db, id(1), Some("noisy"), &what("noise")).unwrap();
    }
    let count = |uid| -> u64 {
        let mut count = db.select("SELECT count(*) FROM events WHERE machine = ?").unwrap();
        count.query_row([id(uid).as_str()], |row| row.get(0)).unwrap()
    };
    assert_eq!(count(1), EVENTS_MAX);
    assert_eq!(count(2), 1);
}

#[test]
fn an_event_of_a_newer_runner_hides_no_other() {
    let db = memory();
    machines::put(&db, &machine(1)).unwrap();
    machines::set_phase(&db, id(1), MachinePhase::Starting, "asked").unwrap();
    machines::set_phase(&db, id(1), MachinePhase::Running, "running").unwrap();
    for what in [r#"{"type": "port"}"#, r#"{"type": "squeeze", "means": "new"}"#, "not even JSON"] {
        db.change("UPDATE events SET what = ? WHERE id = 1").unwrap().execute([what]).unwrap();
        let events = events::after(&db, 0, &Scope::All).unwrap();
        assert_eq!((events.len(), &events[0].what), (2, &EventKind::Unknown), "{what}");
        // It is passed on in a form that a reader tolerates.
        let text = serde_json::to_string(&events[0]).unwrap();
        assert_eq!(serde_json::from_str::<garret_api::runner::Event>(&text).unwrap(), events[0]);
    }
}

#[test]
fn events_are_seen_in_their_scope() {
    let db = memory();
    machines::put(&db, &machine(1)).unwrap();
    machines::put(&db, &machine(2)).unwrap();
    machines::set_phase(&db, id(1), MachinePhase::Starting, "asked").unwrap();
    machines::set_phase(&db, id(2), MachinePhase::Starting, "asked").unwrap();
    let seen = |after, scope: Scope| -> Vec<u64> {
        events::after(&db, after, &scope).unwrap().iter().map(|event| event.id).collect()
    };
    assert_eq!(seen(0, Scope::All), [1, 2]);
    assert_eq!(seen(1, Scope::All), [2]);
    assert_eq!(seen(0, Scope::Machine(id(2))), [2]);
    assert_eq!(seen(0, Scope::Owner(2)), [2]);
    assert_eq!(seen(0, Scope::Owner(3)), [0u64; 0]);
    assert_eq!(seen(0, Scope::Environment(id(2), "x".into())), [0u64; 0]);
    assert_eq!(events::last(&db, &Scope::All).unwrap(), 2);
    assert_eq!(events::last(&db, &Scope::Machine(id(1))).unwrap(), 1);
}

#[test]
fn machines_of_an_older_state_get_a_guarantee() {
    let mut connection = Connection::open_in_memory().unwrap();
    schema::migrate(&mut connection, 1).unwrap();
    for (uid, memory_mib) in [(1, 256), (2, 600), (3, 8192)] {
        let row = "(?1, 1, 'dev' || ?1, ?1, '\"stopped\"', 0, 1, ?2, '\"stopped\"', 'old', 1, NULL)";
        connection.execute(&format!("INSERT INTO machines VALUES {row}"), [uid, memory_mib]).unwrap();
    }
    schema::prepare(&mut connection).unwrap();
    let rows = machines::all(&ReadTx::new(&connection)).unwrap();
    assert_eq!(
        (rows[0].id.as_str(), rows[0].developer.as_str(), rows[0].account.as_deref()),
        ("dev1", "dev1", Some("dev1"))
    );
    let figures: Vec<_> = rows.iter().map(|row| (row.memory_mib, row.guaranteed_mib, row.weight)).collect();
    assert_eq!(figures, [(256, 256, 100), (600, 256, 100), (8192, 2048, 100)]);
}

#[test]
fn a_machine_of_an_older_state_has_its_name_as_id() {
    let mut connection = Connection::open_in_memory().unwrap();
    connection.pragma_update(None, "foreign_keys", "ON").unwrap();
    schema::migrate(&mut connection, 5).unwrap();
    let environment = environment(7, "e");
    let status = serde_json::to_string(&environment.status).unwrap();
    for statement in [
        // Renamed since the machine was made.
        r#"INSERT INTO machines (uid, gid, name, owner, account, slot, desired, vcpus, memory_mib, phase, reason, since)
           VALUES (7, 8, 'alice', 'alicia', 'alicia', 3, '"running"', 2, 512, '"running"', 'r', 1)"#,
        &format!(
            r#"INSERT INTO environments VALUES
               ('e', 7, x'2f772f65', NULL, '{{"LANG":"C"}}', '"running"', 1, 0, 1, 0, '{status}', NULL)"#
        ),
        r#"INSERT INTO events (at_ms, uid, developer, environment, what)
           VALUES (1, 7, 'alice', 'e', '{"type":"stopped","generation":1}'),
                  (1, 7, 'alice', 'e', '{"type":"environment","generation":1,"progress":{"kind":"output","step":"s","text":"t"}}')"#,
        r#"INSERT INTO operations (id, kind, developer, uid, requested_by, begun_ms)
           VALUES ('a', '"start"', 'alicia', 7, 0, 1), ('b', '"remove"', 'bob', 8, 0, 1)"#,
    ] {
        connection.execute(statement, []).unwrap();
    }
    schema::prepare(&mut connection).unwrap();
    let db = WriteTx::new(&connection);
    let id = "alice".parse().unwrap();
    let machine = machines::get(&db, id).unwrap().unwrap();
    assert_eq!(machines::of_owner(&db, 7).unwrap().as_ref(), Some(&machine));
    assert_eq!((machine.developer.as_str(), machine.gid, machine.slot), ("alicia", 8, 3));
    let expected = EnvironmentRow { machine: id, ..environment };
    assert_eq!(environments::of_machine(&db, id).unwrap(), [expected]);
    let events = events::after(&db, 0, &Scope::Environment(id, "e".into())).unwrap();
    assert_eq!((events.len(), events[0].machine, events[0].developer.as_str()), (1, id, "alice"));
    let operations = operations::newest(&db, None).unwrap();
    assert_eq!((operations.len(), operations[0].machine, operations[0].uid), (1, id, 7));
    // All references are the new table's.
    machines::forget(&db, id).unwrap();
    assert_eq!(machines::all(&db).unwrap(), []);
}

#[test]
fn a_developer_has_one_machine() {
    let db = memory();
    machines::put(&db, &machine(7)).unwrap();
    let second = MachineRow { id: id(8), slot: 8, ..machine(7) };
    assert!(machines::put(&db, &second).unwrap_err().to_string().contains("machines.owner"));
    machines::forget(&db, id(7)).unwrap();
    machines::put(&db, &second).unwrap();
}

#[test]
fn pending_work_makes_a_machine_busy() {
    let db = memory();
    for uid in [1, 2, 3] {
        machines::put(&db, &machine(uid)).unwrap();
        environments::put(&db, &EnvironmentRow { observed_generation: 1, ..environment(uid, &format!("done{uid}")) })
            .unwrap();
    }
    environments::put(&db, &environment(2, "asked")).unwrap();
    let removed = EnvironmentRow { removed: true, observed_generation: 1, ..environment(3, "removed") };
    environments::put(&db, &removed).unwrap();
    assert_eq!(environments::busy(&db).unwrap(), [id(2), id(3)].into());
}

#[test]
fn a_newer_state_is_refused() {
    let mut connection = Connection::open_in_memory().unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    let error = schema::prepare(&mut connection).unwrap_err().to_string();
    assert!(error.contains("a newer garret has written it"), "{error}");
}

/// A small file system of its own.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        use rustix::mount::{MountFlags, mount};
        assert!(rustix::process::geteuid().is_root(), "this test needs root, as the daemon does");
        let dir = tempfile::tempdir().unwrap();
        mount("none", dir.path(), "tmpfs", MountFlags::empty(), Some(c"size=32m")).unwrap();
        Self(dir)
    }

    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.path().join("full")).unwrap();
        while std::io::Write::write_all(&mut file, &[7; 4096]).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[tokio::test]
async fn on_a_full_disk_machines_can_still_be_stopped() {
    let disk = SmallDisk::new();
    let store = Store::open(&disk.0.path().join("state.db")).unwrap();
    for uid in 0..20 {
        store.write(move |db| machines::put(db, &machine(uid))).await.unwrap();
    }
    disk.fill();
    for uid in 0..20 {
        store
            .write(move |db| {
                machines::put(db, &MachineRow { desired: Desired::Stopped, ..machine(uid) })?;
                machines::set_phase(db, id(uid), MachinePhase::Stopping, "stopping")
            })
            .await
            .unwrap();
        store.write(move |db| machines::set_phase(db, id(uid), MachinePhase::Stopped, "stopped")).await.unwrap();
    }
    let rows = store.read(machines::all).await.unwrap();
    assert!(rows.iter().all(|row| row.phase == MachinePhase::Stopped));
}

#[tokio::test]
async fn on_a_full_disk_environments_can_still_be_removed() {
    let disk = SmallDisk::new();
    let store = Store::open(&disk.0.path().join("state.db")).unwrap();
    store.write(|db| machines::put(db, &machine(7))).await.unwrap();
    let local_env = [("NAME".to_string(), "x".repeat(200_000))].into();
    let row = EnvironmentRow { local_env, ..environment(7, "e") };
    let again = row.clone();
    store.write(move |db| environments::put(db, &again)).await.unwrap();
    disk.fill();
    // Often enough that some change of many pages begins at every place of the state's log.
    for round in 0..300 {
        let again = row.clone();
        let removed = store.write(move |db| environments::remove(db, id(7), "e")).await.unwrap().unwrap();
        store.write(move |db| environments::forget(db, &removed)).await.unwrap();
        for _ in 0..round % 7 {
            store.write(|db| machines::set_phase(db, id(7), MachinePhase::Stopping, "stopping")).await.unwrap();
        }
        store.write(move |db| environments::put(db, &again)).await.unwrap();
    }
    store
        .write(|db| {
            machines::put(db, &MachineRow { removed: true, ..machine(7) })?;
            machines::forget(db, id(7))
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_state_without_its_room_works_until_it_is_full() {
    let disk = SmallDisk::new();
    let store = Store::open(&disk.0.path().join("state.db")).unwrap();
    store.write(|db| machines::put(db, &machine(7))).await.unwrap();
    disk.fill();
    let reason = "x".repeat(20_000);
    let more = |reason: String| store.write(move |db| machines::set_phase(db, id(7), MachinePhase::Failed, &reason));
    let mut written = 0;
    while more(reason.clone()).await.is_ok() {
        written += 1;
    }
    // More than half of the room was used, so its renewal was tried and failed.
    assert!(written > FREE_PAGES_INTERVAL, "{written}");
    assert_eq!(store.read(machines::all).await.unwrap().len(), 1);
    std::fs::remove_file(disk.0.path().join("full")).unwrap();
    more(reason).await.unwrap();
}

#[tokio::test]
async fn a_failed_job_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let store = Store::open(&path).unwrap();
    store.write(|db| machines::put(db, &machine(1))).await.unwrap();
    let failed = store
        .write(|db| {
            machines::put(db, &machine(2))?;
            machines::put(db, &MachineRow { slot: 1, ..machine(3) })
        })
        .await;
    assert!(failed.is_err());
    let again = Store::open(&path).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let ids = seen.clone();
    again
        .read(move |db| {
            ids.lock().unwrap().extend(machines::all(db)?.into_iter().map(|row| row.id));
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(*seen.lock().unwrap(), [id(1)]);
}
