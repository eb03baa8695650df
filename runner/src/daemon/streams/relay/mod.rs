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
mod tests;
