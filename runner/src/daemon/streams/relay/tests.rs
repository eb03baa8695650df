use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use garret_api::stream::{FRAME_MAX, StreamKind};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use super::super::{NewStream, Streams};
use super::*;
use crate::daemon::testing;

type Socket = WebSocketStream<UnixStream>;

struct Rig {
    streams: Arc<Streams>,
    id: String,
    client: Socket,
    guest: Socket,
    relay: JoinHandle<End>,
}

impl Rig {
    async fn new() -> Self {
        let streams = Arc::new(Streams::default());
        let new = NewStream {
            kind: StreamKind::Exec,
            machine: testing::id(1),
            developer: "a".into(),
            uid: 1,
            environment: None,
            opened_by: 1,
        };
        let stream = streams.open(new).unwrap();
        let id = stream.id.clone();
        let ((client, ours), (theirs, guest)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let relay = tokio::spawn(async move { relay(ours, theirs, &stream).await });
        let client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        let guest = WebSocketStream::from_raw_socket(guest, Role::Server, None).await;
        Self { streams, id, client, guest, relay }
    }

    async fn end(&self) -> bool {
        self.streams.end(&self.id, |_| true, End::Requested { by: 7 }).await
    }
}

/// The reason of the close frame that comes next.
async fn reason(socket: &mut Socket) -> String {
    match socket.next().await {
        Some(Ok(Message::Close(Some(frame)))) => frame.reason.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn bytes_pass_and_are_counted_until_the_client_leaves() {
    let mut rig = Rig::new().await;
    let payload = Message::binary(vec![7; FRAME_MAX]);
    rig.guest.send(payload.clone()).await.unwrap();
    assert_eq!(rig.client.next().await.unwrap().unwrap(), payload);
    rig.client.send(Message::text("hello")).await.unwrap();
    assert_eq!(rig.guest.next().await.unwrap().unwrap(), Message::text("hello"));
    let stream = rig.streams.list(|_| true).remove(0);
    // A client's frame has a mask.
    assert_eq!((stream.to_guest_bytes, stream.from_guest_bytes), (2 + 4 + 5, 10 + FRAME_MAX as u64));
    drop(rig.client);
    assert_eq!(rig.relay.await.unwrap(), End::Client);
    assert_eq!(rig.streams.list(|_| true), []);
}

#[tokio::test]
async fn a_lost_guest_is_reported_unless_it_had_closed() {
    for closes in [false, true] {
        let mut rig = Rig::new().await;
        rig.guest.send(Message::text("last")).await.unwrap();
        if closes {
            rig.guest.send(Message::Close(None)).await.unwrap();
        }
        drop(rig.guest);
        assert_eq!(rig.client.next().await.unwrap().unwrap(), Message::text("last"));
        match closes {
            false => assert_eq!(reason(&mut rig.client).await, End::Guest.to_string()),
            true => assert_eq!(rig.client.next().await.unwrap().unwrap(), Message::Close(None)),
        }
        drop(rig.client);
        assert_eq!(rig.relay.await.unwrap(), End::Guest);
    }
}

#[tokio::test]
async fn an_end_within_a_frame_waits_for_the_rest_of_it() {
    let Rig { streams, id, mut client, mut guest, relay } = Rig::new().await;
    guest.get_mut().write_all(&[0x82, 4, b'a', b'b']).await.unwrap();
    while streams.list(|stream| stream.from_guest_bytes == 4).is_empty() {
        tokio::task::yield_now().await;
    }
    let (ended, told) = tokio::join!(streams.end(&id, |_| true, End::Requested { by: 7 }), async move {
        tokio::task::yield_now().await;
        // The rest, with the beginning of a frame that the client must not get.
        guest.get_mut().write_all(&[b'c', b'd', 0x82, 4, b'x']).await.unwrap();
        let frame = client.next().await.unwrap().unwrap();
        let told = reason(&mut client).await;
        assert!(client.next().await.is_none_or(|end| end.is_err()), "the connection is closed");
        drop(client);
        assert!(guest.next().await.is_none_or(|end| end.is_err()), "so is the guest's");
        (frame, told)
    });
    assert_eq!((ended, told), (true, (Message::binary(&b"abcd"[..]), "uid 7 ended it (`garret streams end`)".into())));
    assert_eq!(relay.await.unwrap(), End::Requested { by: 7 });
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_left_behind() {
    let mut rig = Rig::new().await;
    let flood = async { while rig.guest.send(Message::binary(vec![0; FRAME_MAX])).await.is_ok() {} };
    let _ = tokio::time::timeout(Duration::from_millis(100), flood).await;
    assert!(rig.end().await);
    assert_eq!(rig.relay.await.unwrap(), End::Requested { by: 7 });
}
