use garret_api::runner::{Operation, OperationKind, Outcome};

use super::*;

#[tokio::test]
async fn a_request_begins_an_operation_that_can_be_awaited() {
    let server = Server::start().await;
    let workspace = server.workspace(ALICE, "w");
    let environment = server.up(ALICE, &workspace).await.unwrap();
    let operation = environment.operation.unwrap();
    assert_eq!((operation.kind, operation.requested_by, operation.uid), (OperationKind::Start, ALICE, ALICE));
    assert_eq!((operation.environment, operation.generation), (Some(environment.id.clone()), Some(1)));
    let path = format!("/v1/operations/{}", operation.id);
    let shown: Operation = server.client().get(&path).await.unwrap();
    assert_eq!(shown.outcome, None);

    let (client, waited) = (server.client(), format!("{path}?wait=600"));
    let waiting = tokio::spawn(async move { client.get::<Operation>(&waited).await.unwrap() });
    let id = environment.id.clone();
    let last = EventKind::Environment { generation: 1, progress: Progress::Ready { environment: environment.status } };
    server.daemon.write(move |db| table::end_run(db, &table::get(db, &id)?.unwrap(), &last)).await.unwrap();
    assert_eq!(waiting.await.unwrap().outcome, Some(Outcome::Succeeded));

    // Alice's request started her machine, too.
    let all = server.call(ALICE, Method::GET, "/v1/operations", None).await.unwrap();
    let kinds: Vec<_> =
        all.as_array().unwrap().iter().map(|one| (&one["kind"], one["environment"].is_null())).collect();
    assert_eq!(kinds, [(&json!("start"), false), (&json!("start"), true)]);
    assert_eq!(refused(server.call(BOB, Method::GET, &path, None).await).0, 404);
    assert_eq!(server.call(BOB, Method::GET, "/v1/operations", None).await.unwrap(), json!([]));
}

#[tokio::test]
async fn another_request_cancels_an_operation() {
    let server = Server::start().await;
    let workspace = server.workspace(0, "w");
    let up = server.up(0, &workspace).await.unwrap();
    let path = format!("/v1/environments/{}", up.id);
    let stop = json!({"workspace": workspace, "desired": "stopped"});
    let stopping: Environment = server.client().put(&path, &stop).await.unwrap();
    let shown = async |operation: Option<Operation>| {
        server.client().get::<Operation>(&format!("/v1/operations/{}", operation.unwrap().id)).await.unwrap()
    };
    let cancelled = Outcome::Cancelled { reason: "another request replaced this run".into() };
    assert_eq!(shown(up.operation).await.outcome, Some(cancelled));
    assert_eq!(shown(stopping.operation.clone()).await.outcome, None);
    // The machine does not run, so no client waits for the container.
    server.client().delete(&path).await.unwrap();
    assert!(matches!(shown(stopping.operation).await.outcome, Some(Outcome::Cancelled { .. })));
    let operations: Vec<Operation> = server.client().get("/v1/operations").await.unwrap();
    assert_eq!((operations[0].kind, &operations[0].outcome), (OperationKind::Remove, &Some(Outcome::Succeeded)));
}
