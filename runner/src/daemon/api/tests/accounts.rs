//! Accounts that are renamed or deleted, whose uid or name another person gets, and what a name or an id then means.

use super::*;

/// Starts with alice's machine, created under her name; then replaces the accounts with these.
async fn after_a_change_of_accounts(passwd: &str) -> (Server, TempDir) {
    let names = tempfile::tempdir().unwrap();
    let service = name_service(names.path(), "");
    fs::write(names.path().join("group"), "garret:x:50:\n").unwrap();
    let account = |line: &str| fs::write(names.path().join("passwd"), line).unwrap();
    account(&format!("alice:x:{ALICE}:{ALICE}::/home/alice:/bin/sh\n"));
    let server = Server::with_names(service).await;
    let workspace = server.workspace(ALICE, "w");
    let environment = server.up(ALICE, &workspace).await.unwrap();
    assert_eq!(environment.developer, "alice");
    account(passwd);
    (server, names)
}

#[tokio::test]
async fn a_renamed_account_keeps_its_machine() {
    let passwd = format!("alicia:x:{ALICE}:77::/home/alice:/bin/sh\n");
    let (server, _names) = after_a_change_of_accounts(&passwd).await;
    for (uid, name) in [(ALICE, "alicia".to_string()), (ALICE, ALICE.to_string()), (0, "alicia".into())] {
        let answer = server.call(uid, Method::GET, &format!("/v1/machines/{name}"), None).await.unwrap();
        let machine: Machine = serde_json::from_value(answer).unwrap();
        assert_eq!((machine.developer.as_str(), machine.uid), ("alicia", ALICE));
    }
    let environments = server.call(ALICE, Method::GET, "/v1/environments", None).await.unwrap();
    assert_eq!(environments[0]["developer"], "alicia");
    let row = server.daemon.read(|db| Ok(machine_table::of_owner(db, ALICE)?.unwrap())).await.unwrap();
    // Files, control group and network keep their name.
    assert_eq!((environments[0]["machine"].as_str(), row.gid), (Some(row.id.as_str()), 77));
    assert_eq!(refused(server.call(ALICE, Method::GET, "/v1/machines/alice", None).await).0, 404);
}

#[tokio::test]
async fn an_administrator_finds_a_renamed_machine_by_both_names() {
    let passwd = format!("alicia:x:{ALICE}:{ALICE}::/home/alice:/bin/sh\n");
    let (server, _names) = after_a_change_of_accounts(&passwd).await;
    let stop = json!({"desired": "stopped"});
    // The daemon does not know the new name yet.
    server.client().put::<Machine>("/v1/machines/alice", &stop).await.unwrap();
    let machine: Machine = server.client().put("/v1/machines/alicia", &stop).await.unwrap();
    assert_eq!((machine.developer.as_str(), machine.uid, machine.desired), ("alicia", ALICE, Desired::Stopped));
}

#[tokio::test]
async fn a_name_given_to_another_uid_is_another_machine() {
    let passwd = format!("alice:x:{BOB}:{BOB}::/home/alice:/bin/sh\n");
    let (server, _names) = after_a_change_of_accounts(&passwd).await;
    let start = Some(json!({"desired": "running", "memory_mib": 256}));
    server.call(BOB, Method::PUT, "/v1/machines/alice", start).await.unwrap();
    let mine = server.call(BOB, Method::GET, "/v1/machines/alice", None).await.unwrap();
    assert_eq!((mine["uid"].as_u64(), mine["developer"].as_str()), (Some(BOB.into()), Some("alice")));
    let rows = server.daemon.read(machine_table::all).await.unwrap();
    let names: Vec<_> = rows.iter().map(|row| (row.owner, row.developer.as_str())).collect();
    assert_eq!(names, [(ALICE, &*ALICE.to_string()), (BOB, "alice")]);
    // Only administrators may use the machine of the uid that lost its account.
    let (status, message) = refused(server.call(ALICE, Method::GET, "/v1/machines", None).await);
    assert!(status == 403 && message.contains("the uid has no account now"), "{message}");
    let path = format!("/v1/machines/{ALICE}");
    server.client().put::<Machine>(&path, &json!({"desired": "stopped"})).await.unwrap();
    assert_eq!(refused(server.call(BOB, Method::GET, &path, None).await).0, 404);
}

#[tokio::test]
async fn a_name_that_is_the_id_of_anothers_machine_is_refused() {
    let names = tempfile::tempdir().unwrap();
    let server = Server::with_names(name_service(names.path(), "")).await;
    // A machine of an earlier version, whose owner was called bob.b.
    let former = MachineRow { id: "bob.b".parse().unwrap(), owner: ALICE, ..machine(7) };
    server.daemon.write(move |db| machine_table::put(db, &former)).await.unwrap();
    let (status, message) = refused(server.client().get::<Machine>("/v1/machines/bob.b").await);
    assert!(status == 409 && message.contains("by its uid"), "{message}");
    let machine: Machine = server.client().get(&format!("/v1/machines/{ALICE}")).await.unwrap();
    assert_eq!(machine.id.as_str(), "bob.b");
}

#[tokio::test]
async fn an_owner_gets_the_disk_back_after_the_state_was_lost() {
    let server = Server::start().await;
    let id = "mlost".parse().unwrap();
    let folder = server.daemon.data_folder(id);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("data.img"), "data").unwrap();
    lost_disks::note_owner(&folder, ALICE, Some(&ALICE.to_string())).unwrap();
    for (uid, same) in [(BOB, false), (ALICE, true)] {
        let answer = server.call(uid, Method::PUT, &format!("/v1/machines/{uid}"), Some(json!({}))).await.unwrap();
        let machine: Machine = serde_json::from_value(answer).unwrap();
        assert_eq!(machine.id == id, same, "{uid}");
    }
}

#[tokio::test]
async fn a_uid_of_another_person_is_refused_until_it_is_given() {
    let passwd = format!("bob:x:{ALICE}:{ALICE}::/home/bob:/bin/sh\n");
    let (server, _names) = after_a_change_of_accounts(&passwd).await;
    let path = format!("/v1/machines/{ALICE}");
    for (method, path) in [(Method::GET, "/v1/environments"), (Method::GET, &path), (Method::PUT, "/v1/machines/bob")] {
        let (status, message) = refused(server.call(ALICE, method, path, Some(json!({}))).await);
        assert!(status == 403 && message.contains("was alice's, and the uid is bob's now"), "{path}: {message}");
    }
    let shown: Machine = server.client().get(&path).await.unwrap();
    assert_eq!(shown.developer, "alice");
    let give = |owner: &str| json!({"owner": owner});
    assert_eq!(refused(server.client().put::<Machine>(&path, &give("eve")).await).0, 400);
    let given: Machine = server.client().put(&path, &give("bob")).await.unwrap();
    assert_eq!(given.developer, "bob");
    let mine = server.call(ALICE, Method::GET, "/v1/machines/bob", None).await.unwrap();
    assert_eq!(mine["uid"].as_u64(), Some(ALICE.into()));
    let (status, _) = refused(server.call(ALICE, Method::PUT, &path, Some(give("bob"))).await);
    assert_eq!(status, 403);
}

#[tokio::test]
async fn administrators_are_the_members_in_the_name_service() {
    let names = tempfile::tempdir().unwrap();
    let service = name_service_with(names.path(), &[ALICE]);
    let passwd = fs::read_to_string(names.path().join("passwd")).unwrap();
    fs::write(names.path().join("passwd"), format!("{passwd}carol:x:{BOB}:{BOB}::/home/carol:/bin/sh\n")).unwrap();
    let server = Server::with_names(service).await;
    server.call(ALICE, Method::PUT, &format!("/v1/machines/{ALICE}"), Some(json!({}))).await.unwrap();
    let seen = async || server.call(BOB, Method::GET, "/v1/machines", None).await.unwrap().as_array().unwrap().len();
    assert_eq!(seen().await, 0);
    // As in a directory service: the group lists no members, but the account lists the group.
    fs::write(names.path().join("initgroups"), "carol 50\n").unwrap();
    assert_eq!(seen().await, 1);
}
