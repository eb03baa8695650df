//! A connection and its socket.

use std::io::{ErrorKind, IoSlice, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use vmm_sys_util::epoll::EventSet;

use super::connection::Connection;
use super::handshake;
use super::packet::Key;

/// See the module. Events are edge-triggered, so their state is kept here until the socket returns `EAGAIN`.
pub(super) struct Peer {
    /// The rules, and the bytes that wait for the socket.
    pub connection: Connection,
    /// Non-blocking.
    pub stream: UnixStream,
    /// The socket's event token.
    pub token: u64,
    /// There may be bytes to read, or the end of the stream.
    pub readable: bool,
    writable: bool,
    /// The other end has closed both directions.
    hung_up: bool,
    /// Whether it waits for its turn to send to the guest.
    pub queued: bool,
    /// The part of the muxer's backlog that belongs to this connection, in bytes.
    pub counted: usize,
}

impl Peer {
    /// A connection over `stream`, whose events have `token`.
    pub(super) fn new(connection: Connection, stream: UnixStream, token: u64) -> Self {
        // Earlier events may already be consumed, so assume that the socket is ready; if it is not, it returns
        // `EAGAIN`.
        let (readable, writable) = (true, true);
        Self { connection, stream, token, readable, writable, hung_up: false, queued: false, counted: 0 }
    }

    /// Notes the kernel's events for the socket.
    pub(super) fn wake(&mut self, events: EventSet) {
        let hung_up = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        self.readable |= hung_up || events.intersects(EventSet::IN | EventSet::READ_HANG_UP);
        self.writable |= hung_up || events.contains(EventSet::OUT);
        self.hung_up |= hung_up;
        if hung_up && !self.connection.established() {
            // The client disconnected before the guest answered.
            self.connection.abort();
        }
    }

    /// Ends the connection: for the client at once, for the guest by a reset as soon as it takes one.
    pub(super) fn abort(&mut self) {
        self.connection.abort();
        // It fails only if the other end is already closed.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// The socket was read to its end. `broken`: it was closed with unread bytes, in both directions.
    pub(super) fn ended(&mut self, broken: bool) {
        self.readable = false;
        self.hung_up |= broken;
        self.connection.note_host_send_closed();
    }

    /// Notifies the client that the guest accepted. A new socket has room for one line.
    pub(super) fn send_ok(&mut self, key: Key) {
        let line = handshake::accepted(key.host_port);
        if !matches!(self.stream.write(line.as_bytes()), Ok(count) if count == line.len()) {
            self.abort();
        }
    }

    /// Writes as much of the backlog as the socket accepts, then passes on the end of the stream.
    pub(super) fn flush(&mut self) {
        while self.writable && self.connection.backlog_len() > 0 {
            let (first, second) = self.connection.backlog();
            match self.stream.write_vectored(&[IoSlice::new(first), IoSlice::new(second)]) {
                Ok(count) if count > 0 => self.connection.delivered(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                _ => self.connection.note_host_receive_closed(),
            }
        }
        if self.connection.pass_on_end() {
            // It fails only if the other end is closed, which the next event reports.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        if self.hung_up && self.connection.guest_receive_closed() {
            // The guest will never read the rest, so the connection may report the client's end now.
            self.connection.note_host_send_closed();
        }
        if self.hung_up && self.connection.host_send_closed() {
            self.connection.note_host_receive_closed();
        }
    }
}
