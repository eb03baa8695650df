//! A connection that frees something when it ends.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// A connection with a guard, for example its place among a limited number.
pub struct Connection<G> {
    stream: UnixStream,
    guard: G,
}

impl<G> Connection<G> {
    /// The guard is dropped with the connection.
    pub fn new(stream: UnixStream, guard: G) -> Self {
        Self { stream, guard }
    }

    /// What it holds.
    pub fn guard(&self) -> &G {
        &self.guard
    }
}

impl<G: Unpin> AsyncRead for Connection<G> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl<G: Unpin> AsyncWrite for Connection<G> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
