use std::sync::{Arc, Mutex};

use garret_api::agent::{EnvironmentPhase, EnvironmentStatus, Progress};
use garret_api::runner::{Desired, Happening, MachinePhase};

use super::events::EVENTS_MAX;
use super::*;

pub fn machine(uid: u32) -> MachineRow {
    MachineRow {
        uid,
        gid: uid,
        developer: format!("dev{uid}"),
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

pub fn environment(uid: u32, id: &str) -> EnvironmentRow {
    EnvironmentRow {
        id: id.into(),
        uid,
        workspace: format!("/w/{id}").into(),
        config: None,
        local_env: [("LANG".to_string(), "C".to_string())].into(),
        desired: Desired::Running,
        rebuild: true,
        removed: false,
        generation: 1,
        observed_generation: 0,
        status: EnvironmentStatus {
            id: id.into(),
            phase: EnvironmentPhase::Starting,
            container_id: None,
            remote_user: None,
            workspace_folder: None,
            problem: None,
        },
    }
}

pub fn memory() -> Connection {
    let mut connection = Connection::open_in_memory().unwrap();
    schema::prepare(&mut connection).unwrap();
    connection
}

#[test]
fn what_is_written_is_read_again() {
    let db = memory();
    let mut row = machine(7);
    machines::put(&db, &row).unwrap();
    row.vmm = Some(VmmId { pid: 4, started: 5, boot_id: "b".into() });
    machines::set_vmm(&db, 7, row.vmm.as_ref()).unwrap();
    assert_eq!(machines::get(&db, 7).unwrap().as_ref(), Some(&row));
    assert_eq!(machines::by_developer(&db, "dev7").unwrap(), Some(row));
    let environment = environment(7, "a-1");
    environments::put(&db, &environment).unwrap();
    assert_eq!(environments::get(&db, "a-1").unwrap(), Some(environment));
}

#[test]
fn a_request_does_not_touch_what_was_observed() {
    let db = memory();
    machines::put(&db, &machine(7)).unwrap();
    machines::set_phase(&db, 7, MachinePhase::Running, "running").unwrap();
    machines::put(&db, &MachineRow { vcpus: 4, ..machine(7) }).unwrap();
    let row = machines::get(&db, 7).unwrap().unwrap();
    assert_eq!((row.vcpus, row.phase, row.reason.as_str()), (4, MachinePhase::Running, "running"));
}

#[test]
fn slots_are_unique_and_reused() {
    let db = memory();
    for uid in [0, 1, 3] {
        machines::put(&db, &machine(uid)).unwrap();
    }
    assert_eq!(machines::free_slot(&db, 16).unwrap(), Some(2));
    assert_eq!(machines::free_slot(&db, 2).unwrap(), None);
    machines::forget(&db, 0).unwrap();
    assert_eq!(machines::free_slot(&db, 2).unwrap(), Some(0));
}

#[test]
fn the_end_of_an_older_run_changes_nothing() {
    let db = memory();
    machines::put(&db, &machine(7)).unwrap();
    environments::put(&db, &EnvironmentRow { generation: 2, ..environment(7, "a") }).unwrap();
    let ready = EnvironmentStatus { phase: EnvironmentPhase::Ready, ..environment(7, "a").status };
    environments::settle(&db, "a", 1, &ready).unwrap();
    assert!(!environments::get(&db, "a").unwrap().unwrap().settled());
    environments::settle(&db, "a", 2, &ready).unwrap();
    let row = environments::get(&db, "a").unwrap().unwrap();
    assert!(row.settled() && !row.rebuild && row.status == ready);
}

#[test]
fn a_start_begins_runs_and_an_end_tells_who_waits() {
    let db = memory();
    machines::put(&db, &machine(7)).unwrap();
    environments::put(&db, &EnvironmentRow { observed_generation: 1, ..environment(7, "ran") }).unwrap();
    environments::put(&db, &environment(7, "asked")).unwrap();
    environments::put(&db, &EnvironmentRow { desired: Desired::Stopped, ..environment(7, "still") }).unwrap();
    let begun = environments::begin_all(&db, 7).unwrap();
    let generations: Vec<_> = begun.iter().map(|row| (row.id.as_str(), row.generation)).collect();
    assert_eq!(generations, [("asked", 1), ("ran", 2)]);

    let problem = garret_api::Problem::new("machine-failed", "guest kernel panic");
    environments::end_all(&db, 7, Some(&problem), true).unwrap();
    assert!(events::after(&db, 0, &Scope::default()).unwrap().is_empty(), "it starts again: nobody is told of an end");
    assert!(!environments::get(&db, "asked").unwrap().unwrap().settled());
    environments::end_all(&db, 7, Some(&problem), false).unwrap();
    let events = events::after(&db, 0, &Scope::default()).unwrap();
    let told: Vec<_> = events.iter().filter_map(|event| event.environment.as_deref()).collect();
    assert_eq!(told, ["asked", "ran"]);
    for row in environments::of_machine(&db, 7).unwrap() {
        assert!(row.settled());
        assert_eq!(row.status.phase, EnvironmentPhase::Stopped);
    }
}

#[test]
fn events_are_bounded_per_developer() {
    let db = memory();
    machines::put(&db, &machine(1)).unwrap();
    machines::put(&db, &machine(2)).unwrap();
    let what = |step: &str| Happening::Environment { generation: 1, progress: Progress::Started { step: step.into() } };
    events::add(&db, 2, Some("quiet"), &what("kept")).unwrap();
    for _ in 0..EVENTS_MAX + 500 {
        events::add(&db, 1, Some("noisy"), &what("noise")).unwrap();
    }
    let count =
        |uid| -> u64 { db.query_row("SELECT count(*) FROM events WHERE uid = ?", [uid], |row| row.get(0)).unwrap() };
    assert_eq!(count(1), EVENTS_MAX);
    assert_eq!(count(2), 1);
}

#[test]
fn an_event_of_a_newer_runner_hides_no_other() {
    let db = memory();
    machines::put(&db, &machine(1)).unwrap();
    machines::set_phase(&db, 1, MachinePhase::Starting, "asked").unwrap();
    machines::set_phase(&db, 1, MachinePhase::Running, "running").unwrap();
    for what in [r#"{"type": "port"}"#, r#"{"type": "squeeze", "means": "new"}"#, "not even JSON"] {
        db.execute("UPDATE events SET what = ? WHERE id = 1", [what]).unwrap();
        let events = events::after(&db, 0, &Scope::default()).unwrap();
        assert_eq!((events.len(), &events[0].what), (2, &Happening::Unknown), "{what}");
        // It is passed on as what a reader tolerates.
        let text = serde_json::to_string(&events[0]).unwrap();
        assert_eq!(serde_json::from_str::<garret_api::runner::Event>(&text).unwrap(), events[0]);
    }
}

#[test]
fn events_are_seen_in_their_scope() {
    let db = memory();
    machines::put(&db, &machine(1)).unwrap();
    machines::put(&db, &machine(2)).unwrap();
    machines::set_phase(&db, 1, MachinePhase::Starting, "asked").unwrap();
    machines::set_phase(&db, 2, MachinePhase::Starting, "asked").unwrap();
    let seen = |after, scope: Scope| -> Vec<u64> {
        events::after(&db, after, &scope).unwrap().iter().map(|event| event.id).collect()
    };
    assert_eq!(seen(0, Scope::default()), [1, 2]);
    assert_eq!(seen(1, Scope::default()), [2]);
    assert_eq!(seen(0, Scope { uid: Some(2), environment: None }), [2]);
    assert_eq!(seen(0, Scope { uid: None, environment: Some("x".into()) }), [0u64; 0]);
    assert_eq!(events::last(&db, &Scope::default()).unwrap(), 2);
    assert_eq!(events::last(&db, &Scope { uid: Some(1), environment: None }).unwrap(), 1);
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
    let rows = machines::all(&connection).unwrap();
    let figures: Vec<_> = rows.iter().map(|row| (row.memory_mib, row.guaranteed_mib, row.weight)).collect();
    assert_eq!(figures, [(256, 256, 100), (600, 256, 100), (8192, 2048, 100)]);
}

#[test]
fn what_is_to_be_done_makes_a_machine_busy() {
    let db = memory();
    for uid in [1, 2, 3] {
        machines::put(&db, &machine(uid)).unwrap();
        environments::put(&db, &EnvironmentRow { observed_generation: 1, ..environment(uid, &format!("done{uid}")) })
            .unwrap();
    }
    environments::put(&db, &environment(2, "asked")).unwrap();
    let removed = EnvironmentRow { removed: true, observed_generation: 1, ..environment(3, "removed") };
    environments::put(&db, &removed).unwrap();
    assert_eq!(environments::busy(&db).unwrap(), [2, 3].into());
}

#[test]
fn a_newer_state_is_refused() {
    let mut connection = Connection::open_in_memory().unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    let error = schema::prepare(&mut connection).unwrap_err().to_string();
    assert!(error.contains("a newer garret has written it"), "{error}");
}

#[tokio::test]
async fn a_failed_job_leaves_nothing_behind_and_a_reopened_state_has_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let store = Store::open(&path).unwrap();
    store.run(|db| machines::put(db, &machine(1))).await.unwrap();
    let failed = store
        .run(|db| {
            machines::put(db, &machine(2))?;
            machines::put(db, &MachineRow { developer: "dev1".into(), ..machine(3) })
        })
        .await;
    assert!(failed.is_err());
    let again = Store::open(&path).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let names = seen.clone();
    again
        .run(move |db| {
            names.lock().unwrap().extend(machines::all(db)?.into_iter().map(|row| row.developer));
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(*seen.lock().unwrap(), ["dev1"]);
}
