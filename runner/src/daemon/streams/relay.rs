//! Copies a stream's bytes between its client and its guest, until one of them leaves or the stream should end.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};

use super::frames::{Frames, close_frame};
use super::{End, OpenStream};

/// Bytes that are copied at once, in each direction.
const PIECE: usize = 16 * 1024;
/// How long the rest of the last frame, the reason, and the client's answer to it may take.
const CLOSING_TIME: Duration = Duration::from_secs(2);

/// Copies until an end, and returns it. If the client is still there, it gets the reason in a close frame.
pub(in crate::daemon) async fn relay(
    client: impl AsyncRead + AsyncWrite,
    guest: impl AsyncRead + AsyncWrite,
    stream: &OpenStream,
) -> End {
    let (mut from_client, to_client) = split(client);
    let (from_guest, mut to_guest) = split(guest);
    let mut output = Output::new(from_guest, to_client, &stream.bytes.from_guest);
    let end = tokio::select! {
        end = stream.end_requested() => end,
        end = copy_input(&mut from_client, &mut to_guest, &stream.bytes.to_guest) => end,
        end = output.copy() => end,
    };
    if end != End::Client {
        let closing = async {
            if output.close(&end.to_string()).await.is_ok() {
                // A connection that is closed with input unread may lose what was sent.
                while from_client.read(&mut [0; 512]).await.is_ok_and(|length| length > 0) {}
            }
        };
        let _ = tokio::time::timeout(CLOSING_TIME, closing).await;
    }
    end
}

/// Copies the client's bytes to the guest, until the client leaves. A guest that takes no more input may still have output.
async fn copy_input(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin), bytes: &AtomicU64) -> End {
    let mut buffer = vec![0; PIECE];
    let mut taken = true;
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        taken = taken && to.write_all(&buffer[..length]).await.is_ok();
        bytes.fetch_add(length as u64, Ordering::Relaxed);
    }
    End::Client
}

/// The guest's bytes on their way to the client.
struct Output<'a, R, W> {
    from: R,
    to: W,
    bytes: &'a AtomicU64,
    buffer: Vec<u8>,
    unsent: Range<usize>,
    frames: Frames,
}

impl<'a, R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Output<'a, R, W> {
    fn new(from: R, to: W, bytes: &'a AtomicU64) -> Self {
        Self { from, to, bytes, buffer: vec![0; PIECE], unsent: 0..0, frames: Frames::default() }
    }

    async fn copy(&mut self) -> End {
        loop {
            if let Err(end) = self.step(PIECE).await {
                return end;
            }
        }
    }

    /// Sends what was read, or reads `most` bytes if everything is sent. Cancel-safe.
    async fn step(&mut self, most: usize) -> Result<(), End> {
        if !self.unsent.is_empty() {
            let Ok(length @ 1..) = self.to.write(&self.buffer[self.unsent.clone()]).await else {
                return Err(End::Client);
            };
            self.unsent.start += length;
            return Ok(());
        }
        let most = most.min(PIECE);
        let Ok(length @ 1..) = self.from.read(&mut self.buffer[..most]).await else { return Err(End::Guest) };
        self.frames.scan(&self.buffer[..length]);
        self.unsent = 0..length;
        self.bytes.fetch_add(length as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Sends the rest of the present frame, a close frame unless the guest has sent one, and no more.
    async fn close(&mut self, reason: &str) -> Result<(), End> {
        while !self.unsent.is_empty() || self.frames.rest() > 0 {
            self.step(self.frames.rest()).await?;
        }
        let last = if self.frames.is_closed() { Vec::new() } else { close_frame(reason) };
        self.to.write_all(&last).await.map_err(|_| End::Client)?;
        self.to.shutdown().await.map_err(|_| End::Client)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::{SinkExt, StreamExt};
    use garret_api::stream::{FRAME_MAX, StreamKind};
    use tokio::net::UnixStream;
    use tokio::task::JoinHandle;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::protocol::{Message, Role};

    use super::super::{NewStream, Streams};
    use super::*;

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
            let new =
                NewStream { kind: StreamKind::Exec, developer: "a".into(), uid: 1, environment: None, opened_by: 1 };
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
        assert_eq!(
            (ended, told),
            (true, (Message::binary(&b"abcd"[..]), "uid 7 ended it (`garret streams end`)".into()))
        );
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
}
