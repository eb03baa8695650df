use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use axum::extract::WebSocketUpgrade;
use axum::extract::ws::{Message as AgentMessage, WebSocket};
use futures_util::{SinkExt, StreamExt};
use garret_api::ProblemDetails;
use garret_api::runner::Stream;
use garret_api::stream::StreamKind;
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message};

use super::*;
use crate::daemon::streams::{NewStream, OF_ACCOUNT_MAX};

type Socket = WebSocketStream<UnixStream>;

/// A server with the running machine of alice, whose agent answers `/v1/exec` as `exec` does.
async fn with_machine(exec: axum::routing::MethodRouter) -> Server {
    let server = Server::start().await;
    let path = format!("/v1/machines/{ALICE}");
    server.call(ALICE, Method::PUT, &path, Some(json!({"desired": "running"}))).await.unwrap();
    let running = |db: &WriteTx<'_>| {
        let id = machine_table::of_owner(db, ALICE)?.unwrap().id;
        machine_table::set_phase(db, id, MachinePhase::Running, "running")?;
        Ok(id)
    };
    let machine = server.daemon.write(running).await.unwrap();
    testing::serve_agent(&server.daemon, machine, Router::new().route("/v1/exec", exec));
    server.daemon.set_vmm(machine, Some(std::process::id()));
    server.daemon.memory.pauses.started(machine);
    server
}

/// Sends each message back, and leaves without a word at the text `leave`.
async fn echo(upgrade: WebSocketUpgrade) -> axum::response::Response {
    upgrade.on_upgrade(async |mut socket: WebSocket| {
        while let Some(Ok(message)) = socket.recv().await {
            if message == AgentMessage::text("leave") || socket.send(message).await.is_err() {
                return;
            }
        }
    })
}

/// A stream to the guest of alice's machine, opened by this user.
async fn open(server: &Server, uid: u32) -> Result<Socket, tungstenite::Error> {
    let socket = server.dir.path().join("garret.sock");
    let connected = as_user(uid, move || StdUnixStream::connect(socket).unwrap()).await;
    connected.set_nonblocking(true).unwrap();
    let stream = UnixStream::from_std(connected).unwrap();
    let path = format!("ws://garret/v1/machines/{ALICE}/exec");
    Ok(tokio_tungstenite::client_async(path, stream).await?.0)
}

/// The status and the problem of a refused stream.
fn rejected(answer: Result<Socket, tungstenite::Error>) -> (u16, String) {
    let Err(tungstenite::Error::Http(response)) = answer else { panic!("{answer:?}") };
    let details: ProblemDetails = serde_json::from_slice(response.body().as_deref().unwrap()).unwrap();
    assert_eq!(response.status(), details.status);
    (details.status, details.problem.detail)
}

async fn list(server: &Server, uid: u32) -> Vec<Stream> {
    serde_json::from_value(server.call(uid, Method::GET, "/v1/streams", None).await.unwrap()).unwrap()
}

async fn wait_for_count(server: &Server, count: usize) -> Vec<Stream> {
    loop {
        let streams = server.daemon.streams.list(|_| true);
        if streams.len() == count {
            return streams;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The reason of the close frame that comes next. Closes the socket, as a command does.
async fn reason(mut socket: Socket) -> String {
    match socket.next().await {
        Some(Ok(Message::Close(Some(frame)))) => frame.reason.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_stream_is_seen_and_ended_by_its_owner_and_administrators() {
    let server = with_machine(get(echo)).await;
    for (opened_by, ended_by) in [(ALICE, ALICE), (ALICE, 0), (0, ALICE)] {
        let mut socket = open(&server, opened_by).await.unwrap();
        socket.send(Message::text("hello")).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("hello"));
        let streams = list(&server, ALICE).await;
        let [stream] = &streams[..] else { panic!("{streams:?}") };
        assert_eq!((stream.uid, stream.opened_by, &stream.environment), (ALICE, opened_by, &None));
        // Both have a header of 2 bytes, and a client's frame has a mask.
        assert_eq!((stream.to_guest_bytes, stream.from_guest_bytes), (11, 7));
        assert!(server.daemon.memory.pauses.is_needed(stream.machine));
        assert_eq!((list(&server, 0).await, list(&server, BOB).await), (streams.clone(), vec![]));
        let path = format!("/v1/streams/{}", stream.id);
        let (status, said) = refused(server.call(BOB, Method::DELETE, &path, None).await);
        assert!(status == 404 && said.contains("there is no stream"), "{status} {said}");

        let (ended, told) = tokio::join!(server.call(ended_by, Method::DELETE, &path, None), reason(socket));
        ended.unwrap();
        assert_eq!(told, format!("uid {ended_by} ended it (`garret streams end`)"));
        assert_eq!(list(&server, 0).await, []);
        assert_eq!(refused(server.call(0, Method::DELETE, &path, None).await).0, 404);
    }
}

#[tokio::test]
async fn a_stream_ends_with_its_client_its_guest_or_the_daemon() {
    let server = with_machine(get(echo)).await;
    let client = open(&server, ALICE).await.unwrap();
    wait_for_count(&server, 1).await;
    drop(client);
    wait_for_count(&server, 0).await;

    let mut client = open(&server, ALICE).await.unwrap();
    client.send(Message::text("leave")).await.unwrap();
    assert!(reason(client).await.contains("`garret show --machine`"));
    wait_for_count(&server, 0).await;

    let client = open(&server, ALICE).await.unwrap();
    server.daemon.streams.close();
    assert_eq!(reason(client).await, "the garret daemon was stopped");
    wait_for_count(&server, 0).await;
    let (status, said) = rejected(open(&server, ALICE).await);
    assert!(status == 503 && said.contains("try again"), "{status} {said}");
}

#[tokio::test]
async fn a_stream_that_the_agent_does_not_complete_leaves_nothing() {
    let server = with_machine(get(async || Refusal::new(Code::Unavailable, "the guest is busy"))).await;
    assert_eq!(rejected(open(&server, ALICE).await), (503, "the guest is busy".into()));
    assert_eq!(list(&server, ALICE).await, []);

    let server = with_machine(get(async || std::future::pending::<()>().await)).await;
    let (answer, ()) = tokio::join!(open(&server, ALICE), async {
        let id = wait_for_count(&server, 1).await.remove(0).id;
        server.call(ALICE, Method::DELETE, &format!("/v1/streams/{id}"), None).await.unwrap();
    });
    assert_eq!(rejected(answer), (409, format!("uid {ALICE} ended it (`garret streams end`)")));
}

#[tokio::test]
async fn an_account_has_a_limited_number_of_streams() {
    let server = with_machine(get(echo)).await;
    let new = |opened_by| NewStream {
        kind: StreamKind::Exec,
        machine: testing::id(ALICE),
        developer: "alice".into(),
        uid: ALICE,
        environment: None,
        opened_by,
    };
    let mut held: Vec<_> = (0..OF_ACCOUNT_MAX).map(|_| server.daemon.streams.open(new(ALICE)).unwrap()).collect();
    let (status, said) = rejected(open(&server, ALICE).await);
    assert_eq!(status, 503);
    let expected = "this account has 224 streams open: `garret streams` lists them, `garret streams end ID` ends one";
    assert_eq!(said, expected);
    open(&server, 0).await.unwrap();
    held.pop();
    open(&server, ALICE).await.unwrap();
}

#[tokio::test]
async fn a_kind_that_the_agent_does_not_name_is_refused() {
    let server = with_machine(get(echo)).await;
    let machine = server.daemon.read(|db| Ok(machine_table::of_owner(db, ALICE)?.unwrap().id)).await.unwrap();
    for (kinds, status) in [(vec![], 409), (vec![StreamKind::Unknown], 409), (vec![StreamKind::Exec], 101)] {
        server.daemon.set_serves(machine, kinds);
        let answer = open(&server, ALICE).await;
        if status == 101 {
            answer.unwrap();
            continue;
        }
        let (got, said) = rejected(answer);
        assert!(
            got == status && said.starts_with("the agent of this machine serves no exec streams: "),
            "{got} {said}"
        );
    }
}
