//! One stream between a port of the guest and a Unix socket of the host, as a state machine without I/O. It decides
//! which packets the guest must get, how many bytes each side may still send (virtio 1.2 §5.10.6.3), and when the
//! connection is over.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use super::packet::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// The most bytes that the guest may send ahead of the host's reader. This bounds the memory of a [`Connection`].
pub(super) const BUFFER: u32 = 256 << 10;
/// The guest is notified of free room once this much of it is new.
const CREDIT_STEP: u32 = BUFFER / 4;
/// A buffer that is mostly empty is shrunk, but not below this size.
const KEEP_CAPACITY: usize = 16 << 10;

/// The guest broke the protocol; the connection must be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Connection {
    /// The connection is open: one side asked for it and the other accepted.
    established: bool,
    /// Bytes from the guest that the host has not taken yet.
    backlog: VecDeque<u8>,
    /// Bytes the host has taken, modulo 2³²; `reported` is the value last sent to the guest.
    forwarded: u32,
    reported: u32,
    /// Bytes sent to the guest, and the guest's last report about its buffer.
    sent: u32,
    peer_buffer: u32,
    peer_forwarded: u32,
    /// A `CreditRequest` has been sent and not answered.
    credit_requested: bool,
    pending: PendingControl,
    /// `SHUTDOWN_*` bits: the directions the guest has closed, those the host has closed, and those announced to the
    /// guest.
    guest_closed: u32,
    host_closed: u32,
    announced: u32,
    /// The host's socket accepts no more bytes.
    host_receive_closed: bool,
    /// The guest's end of stream was passed on to the host's socket.
    end_passed_on: bool,
    reset_received: bool,
    reset_sent: bool,
}

/// Packets without payload that must be sent to the guest, each at most once.
#[derive(Debug, Default)]
struct PendingControl {
    request: bool,
    response: bool,
    reset: bool,
    credit: bool,
    credit_request: bool,
}

impl Connection {
    /// A connection that the host requests from the guest.
    pub(super) fn outgoing() -> Self {
        Self { pending: PendingControl { request: true, ..PendingControl::default() }, ..Self::default() }
    }

    /// A connection that the guest requested with `request`; the host's socket is connected.
    pub(super) fn incoming(request: &Header) -> Self {
        let mut connection = Self {
            established: true,
            pending: PendingControl { response: true, ..PendingControl::default() },
            ..Self::default()
        };
        connection.note_credit(request);
        connection
    }

    /// Whether the connection is open.
    pub(super) fn established(&self) -> bool {
        self.established
    }

    /// Takes one packet of the guest. After an error the connection must send a reset and accepts no more packets.
    pub(super) fn receive(&mut self, op: Op, header: &Header, payload: &[u8]) -> Result<(), Broken> {
        if self.ending() {
            return Ok(());
        }
        self.note_credit(header);
        let result = match op {
            Op::Response if !self.established && !self.pending.request => {
                self.established = true;
                Ok(())
            }
            Op::Reset => {
                self.reset_received = true;
                Ok(())
            }
            Op::Request | Op::Response => Err(Broken),
            _ if !self.established => Err(Broken),
            Op::Data => self.receive_data(payload),
            Op::Shutdown => {
                self.guest_closed |= header.flags.get() & SHUTDOWN_BOTH;
                Ok(())
            }
            Op::CreditUpdate => Ok(()),
            Op::CreditRequest => {
                self.pending.credit = true;
                Ok(())
            }
        };
        if result.is_err() {
            self.abort();
        }
        self.check_shutdown();
        result
    }

    fn receive_data(&mut self, payload: &[u8]) -> Result<(), Broken> {
        let room = BUFFER as usize - self.backlog.len();
        if payload.len() > room || self.guest_closed & SHUTDOWN_SEND != 0 {
            return Err(Broken);
        }
        if self.host_receive_closed {
            self.forward(payload.len());
        } else {
            self.backlog.extend(payload);
        }
        Ok(())
    }

    /// Bytes for the host, in order, in two pieces.
    pub(super) fn backlog(&self) -> (&[u8], &[u8]) {
        self.backlog.as_slices()
    }

    /// The size of the buffer in which bytes wait for the host.
    #[cfg(test)]
    pub(super) fn backlog_capacity(&self) -> usize {
        self.backlog.capacity()
    }

    /// The number of bytes that wait for the host.
    pub(super) fn backlog_len(&self) -> usize {
        self.backlog.len()
    }

    /// Notes that the host took `count` bytes of the backlog.
    pub(super) fn delivered(&mut self, count: usize) {
        self.backlog.drain(..count);
        // The limit counts bytes, so the buffer must not keep much more capacity than bytes.
        if self.backlog.len() < self.backlog.capacity() / 4 {
            self.backlog.shrink_to((2 * self.backlog.len()).max(KEEP_CAPACITY));
        }
        self.forward(count);
        self.check_shutdown();
    }

    fn forward(&mut self, count: usize) {
        // The counters are modulo 2³² by definition.
        self.forwarded = self.forwarded.wrapping_add(count as u32);
        if self.forwarded.wrapping_sub(self.reported) >= CREDIT_STEP {
            self.pending.credit = true;
        }
    }

    /// True once: the guest has ended its stream and the host has all its bytes, so the host's socket must see the end.
    pub(super) fn pass_on_end(&mut self) -> bool {
        let due = self.guest_closed & SHUTDOWN_SEND != 0 && self.backlog.is_empty() && !self.host_receive_closed;
        due && !std::mem::replace(&mut self.end_passed_on, true)
    }

    /// The number of bytes that may be read from the host and sent now.
    pub(super) fn window(&self) -> u32 {
        let open = self.established
            && self.host_closed & SHUTDOWN_SEND == 0
            && self.guest_closed & SHUTDOWN_RECEIVE == 0
            && !self.ending()
            && !self.pending.response;
        if open { self.credit() } else { 0 }
    }

    /// The number of bytes that the guest has room for.
    fn credit(&self) -> u32 {
        // A guest that claims to have taken more than it was sent gets no credit: the difference wraps to a huge
        // number.
        self.peer_buffer.saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    /// Notes that `count` bytes were sent to the guest.
    pub(super) fn sent(&mut self, count: u32) {
        debug_assert!(count <= self.window());
        self.sent = self.sent.wrapping_add(count);
    }

    /// Notes that the host has more to send than the guest has room for.
    pub(super) fn starved(&mut self) {
        let open = self.established && !self.ending() && self.guest_closed & SHUTDOWN_RECEIVE == 0;
        if open && self.credit() == 0 && !std::mem::replace(&mut self.credit_requested, true) {
            self.pending.credit_request = true;
        }
    }

    /// Notes that the host's socket will send no more.
    pub(super) fn note_host_send_closed(&mut self) {
        self.host_closed |= SHUTDOWN_SEND;
        self.check_shutdown();
    }

    /// Whether the host's socket was read to its end.
    pub(super) fn host_send_closed(&self) -> bool {
        self.host_closed & SHUTDOWN_SEND != 0
    }

    /// Whether the guest accepts no more bytes.
    pub(super) fn guest_receive_closed(&self) -> bool {
        self.guest_closed & SHUTDOWN_RECEIVE != 0
    }

    /// Notes that the host's socket accepts no more bytes.
    pub(super) fn note_host_receive_closed(&mut self) {
        self.host_receive_closed = true;
        self.host_closed |= SHUTDOWN_RECEIVE;
        let unread = self.backlog.len();
        self.backlog = VecDeque::new();
        self.forward(unread);
        self.check_shutdown();
    }

    /// Aborts the connection: the guest gets a reset.
    pub(super) fn abort(&mut self) {
        self.pending.reset = !self.reset_received;
        self.backlog = VecDeque::new();
    }

    /// The next packet without payload for the guest, with its flags. It counts as sent.
    pub(super) fn take_control(&mut self) -> Option<(Op, u32)> {
        let pending = &mut self.pending;
        if self.reset_received || self.reset_sent {
            return None;
        }
        if std::mem::take(&mut pending.reset) {
            self.reset_sent = true;
            return Some((Op::Reset, 0));
        }
        for (due, op) in [(&mut pending.request, Op::Request), (&mut pending.response, Op::Response)] {
            if std::mem::take(due) {
                return Some((op, 0));
            }
        }
        if !self.established {
            return None;
        }
        for (due, op) in [(&mut pending.credit, Op::CreditUpdate), (&mut pending.credit_request, Op::CreditRequest)] {
            if std::mem::take(due) {
                return Some((op, 0));
            }
        }
        // Last: the end of the stream must not overtake earlier packets.
        let news = self.host_closed & !self.announced;
        self.announced = self.host_closed;
        (news != 0).then_some((Op::Shutdown, self.host_closed))
    }

    /// Whether [`take_control`](Self::take_control) would return a packet.
    pub(super) fn has_pending_control(&self) -> bool {
        let PendingControl { request, response, reset, credit, credit_request } = self.pending;
        let later = self.established && (credit || credit_request || self.host_closed != self.announced);
        !self.reset_received && !self.reset_sent && (reset || request || response || later)
    }

    /// Writes the credit fields that go into every packet.
    pub(super) fn write_credit(&mut self, header: &mut Header) {
        header.buf_alloc = BUFFER.into();
        header.fwd_cnt = self.forwarded.into();
        self.reported = self.forwarded;
        self.pending.credit = false;
    }

    /// Whether the connection is finished: a reset was sent, or one was received and the host has all the guest's
    /// bytes.
    pub(super) fn over(&self) -> bool {
        self.reset_sent || (self.reset_received && self.backlog.is_empty())
    }

    /// Whether it waits for something that may never come: the guest's answer, its last reset, or the host's reader
    /// after the guest has closed. Such a wait needs a deadline.
    pub(super) fn needs_deadline(&self) -> bool {
        !self.established
            || self.announced == SHUTDOWN_BOTH
            || self.guest_closed == SHUTDOWN_BOTH
            || self.reset_received
    }

    /// Bytes the host has taken, modulo 2³². The value changes while a slow reader makes progress.
    pub(super) fn progress(&self) -> u32 {
        self.forwarded
    }

    fn ending(&self) -> bool {
        self.pending.reset || self.reset_received || self.reset_sent
    }

    fn note_credit(&mut self, header: &Header) {
        self.peer_buffer = header.buf_alloc.get();
        self.peer_forwarded = header.fwd_cnt.get();
        self.credit_requested &= self.credit() == 0;
    }

    /// Applies the consequences of a change: when both directions are closed, the connection ends (§5.10.6.6).
    fn check_shutdown(&mut self) {
        if !self.backlog.is_empty() || self.ending() {
            return;
        }
        if self.guest_closed == SHUTDOWN_BOTH {
            self.pending.reset = true;
        } else if self.guest_closed & SHUTDOWN_SEND != 0 && self.host_closed & SHUTDOWN_SEND != 0 {
            self.host_closed = SHUTDOWN_BOTH;
        }
    }
}
