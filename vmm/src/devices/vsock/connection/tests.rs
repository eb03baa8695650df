//! Tests the state machine against a model: a guest that follows the protocol and one that does not.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::{BUFFER, Broken, Connection};
use crate::devices::vsock::packet::{self, Header, Key, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

const KEY: Key = Key { guest_port: 1, host_port: 2 };

fn packet(op: Op, flags: u32, credit: (u32, u32)) -> Header {
    Header {
        flags: flags.into(),
        buf_alloc: credit.0.into(),
        fwd_cnt: credit.1.into(),
        ..packet::header(KEY, 3, op, 0)
    }
}

fn established() -> Connection {
    let mut connection = Connection::incoming(&packet(Op::Request, 0, (BUFFER, 0)));
    assert_eq!(connection.take_control(), Some((Op::Response, 0)));
    connection
}

fn receive(connection: &mut Connection, op: Op, flags: u32) -> Result<(), Broken> {
    connection.receive(op, &packet(op, flags, (BUFFER, 0)), &[])
}

/// A guest that follows the protocol.
#[derive(Default)]
struct Guest {
    /// Bytes sent, and the host's credit according to its last packet.
    sent: u32,
    host_buffer: u32,
    host_forwarded: u32,
    /// Its own receive buffer: size, bytes in it, bytes that its reader has taken.
    buffer: u32,
    unread: VecDeque<u8>,
    forwarded: u32,
}

impl Guest {
    fn credit(&self) -> u32 {
        self.host_buffer - self.sent.wrapping_sub(self.host_forwarded)
    }

    fn receive_packet(&mut self, connection: &mut Connection, header: &mut Header) {
        connection.write_credit(header);
        self.host_buffer = header.buf_alloc.get();
        self.host_forwarded = header.fwd_cnt.get();
    }

    fn packet(&self, op: Op) -> Header {
        packet(op, 0, (self.buffer, self.forwarded))
    }
}

#[derive(Clone, Debug)]
enum Step {
    GuestSends(u32),
    HostReads(usize),
    HostSends(u32),
    GuestReads(usize),
    GuestTellsCredit,
    HostAnswers,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = || prop_oneof![1u32..64, 1u32..100_000];
    let count = || prop_oneof![1usize..64, 1usize..200_000];
    prop::collection::vec(
        prop_oneof![
            size().prop_map(Step::GuestSends),
            count().prop_map(Step::HostReads),
            size().prop_map(Step::HostSends),
            count().prop_map(Step::GuestReads),
            Just(Step::GuestTellsCredit),
            Just(Step::HostAnswers),
        ],
        1..200,
    )
}

/// All bytes sent and received, as running numbers: byte `n` of a stream is `n % 251`.
struct Harness {
    connection: Connection,
    guest: Guest,
    to_host: u64,
    host_heard: u64,
    to_guest: u64,
    guest_heard: u64,
}

fn bytes(from: u64, count: usize) -> Vec<u8> {
    (from..from + count as u64).map(|n| (n % 251) as u8).collect()
}

impl Harness {
    fn new(buffer: u32) -> Self {
        let guest = Guest { buffer, ..Guest::default() };
        let mut connection = Connection::incoming(&guest.packet(Op::Request));
        assert_eq!(connection.take_control(), Some((Op::Response, 0)));
        let mut harness = Self { connection, guest, to_host: 0, host_heard: 0, to_guest: 0, guest_heard: 0 };
        harness.guest.receive_packet(&mut harness.connection, &mut packet(Op::Response, 0, (0, 0)));
        harness
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::GuestSends(len) => {
                let len = len.min(self.guest.credit()).min(packet::MAX_PAYLOAD);
                let payload = bytes(self.to_host, len as usize);
                let header = self.guest.packet(Op::Data);
                assert_eq!(self.connection.receive(Op::Data, &header, &payload), Ok(()), "within its credit");
                self.guest.sent = self.guest.sent.wrapping_add(len);
                self.to_host += u64::from(len);
            }
            Step::HostReads(count) => {
                let (first, second) = self.connection.backlog();
                let heard: Vec<u8> = first.iter().chain(second).take(count).copied().collect();
                assert_eq!(heard, bytes(self.host_heard, heard.len()));
                self.connection.delivered(heard.len());
                self.host_heard += heard.len() as u64;
            }
            Step::HostSends(len) => {
                let len = len.min(self.connection.window());
                self.connection.sent(len);
                self.guest.receive_packet(&mut self.connection, &mut packet(Op::Data, 0, (0, 0)));
                self.guest.unread.extend(bytes(self.to_guest, len as usize));
                self.to_guest += u64::from(len);
                assert!(self.guest.unread.len() <= self.guest.buffer as usize, "the guest's buffer is overrun");
                self.connection.starved();
            }
            Step::GuestReads(count) => {
                let count = count.min(self.guest.unread.len());
                let heard: Vec<u8> = self.guest.unread.drain(..count).collect();
                assert_eq!(heard, bytes(self.guest_heard, count));
                self.guest_heard += count as u64;
                self.guest.forwarded = self.guest.forwarded.wrapping_add(count as u32);
            }
            Step::GuestTellsCredit => {
                let header = self.guest.packet(Op::CreditUpdate);
                self.connection.receive(Op::CreditUpdate, &header, &[]).unwrap();
            }
            Step::HostAnswers => {
                while let Some((op, flags)) = self.connection.take_control() {
                    assert!(matches!(op, Op::CreditUpdate | Op::CreditRequest), "{op:?}");
                    self.guest.receive_packet(&mut self.connection, &mut packet(op, flags, (0, 0)));
                    if op == Op::CreditRequest {
                        self.step(&Step::GuestTellsCredit);
                    }
                }
            }
        }
        assert!(self.connection.backlog_len() <= BUFFER as usize);
        assert_eq!(self.to_host - self.host_heard, self.connection.backlog_len() as u64, "lost or doubled");
        assert!(!self.connection.over());
    }
}

proptest! {
    #[test]
    fn no_byte_is_lost_doubled_reordered_or_sent_without_credit(buffer in 1u32..300_000, steps in steps()) {
        let mut harness = Harness::new(buffer);
        for step in &steps {
            harness.step(step);
        }
        // In every case both directions can continue: no side waits for credit that never comes.
        for _ in 0..4 {
            for step in [Step::HostReads(usize::MAX), Step::HostAnswers, Step::GuestReads(usize::MAX), Step::GuestTellsCredit] {
                harness.step(&step);
            }
        }
        let (to_host, to_guest) = (harness.to_host, harness.to_guest);
        harness.step(&Step::GuestSends(1));
        harness.step(&Step::HostSends(1));
        prop_assert_eq!(harness.to_host, to_host + 1);
        prop_assert_eq!(harness.to_guest, to_guest + 1);
    }

    #[test]
    fn a_guest_without_rules_is_bounded_and_ends_in_a_reset(
        packets in prop::collection::vec((0usize..7, any::<u32>(), any::<(u32, u32)>(), 0usize..70_000), 1..60)
    ) {
        const OPS: [Op; 7] =
            [Op::Request, Op::Response, Op::Reset, Op::Shutdown, Op::Data, Op::CreditUpdate, Op::CreditRequest];
        for mut connection in [Connection::outgoing(), established()] {
            let mut broken = false;
            for (op, flags, credit, len) in &packets {
                let payload = vec![0; if OPS[*op] == Op::Data { *len } else { 0 }];
                let result = connection.receive(OPS[*op], &packet(OPS[*op], *flags, *credit), &payload);
                broken |= result.is_err();
                prop_assert!(connection.backlog_len() <= BUFFER as usize);
                prop_assert!(connection.window() <= credit.0);
                // At most one packet of each kind is pending, however many were received.
                let mut owed = 0;
                while let Some((op, _)) = connection.take_control() {
                    owed += 1;
                    if op == Op::Reset {
                        prop_assert!(connection.over());
                    }
                }
                prop_assert!(owed <= 5, "{} packets are owed", owed);
                prop_assert!(!connection.has_pending_control());
            }
            if broken {
                prop_assert!(connection.over());
            }
        }
    }
}

#[test]
fn a_client_is_greeted_only_after_the_guests_response() {
    let mut connection = Connection::outgoing();
    assert!(connection.needs_deadline());
    assert_eq!(connection.take_control(), Some((Op::Request, 0)));
    assert_eq!(connection.take_control(), None);
    assert_eq!(connection.window(), 0);
    receive(&mut connection, Op::Response, 0).unwrap();
    assert!(connection.established() && !connection.needs_deadline());
    assert_eq!(connection.window(), BUFFER);
}

#[test]
fn an_unexpected_response_breaks_the_connection() {
    let mut early = Connection::outgoing();
    assert_eq!(receive(&mut early, Op::Response, 0), Err(Broken), "the request was not even sent");
    let mut twice = established();
    assert_eq!(receive(&mut twice, Op::Response, 0), Err(Broken));
    assert_eq!(twice.take_control(), Some((Op::Reset, 0)));
    assert!(twice.over());
}

#[test]
fn more_than_the_credit_breaks_the_connection() {
    let mut connection = established();
    let header = packet(Op::Data, 0, (BUFFER, 0));
    for _ in 0..4 {
        connection.receive(Op::Data, &header, &vec![7; BUFFER as usize / 4]).unwrap();
    }
    assert_eq!(connection.receive(Op::Data, &header, &[7]), Err(Broken));
    assert_eq!(connection.backlog_len(), 0);
    assert_eq!(connection.take_control(), Some((Op::Reset, 0)));
}

#[test]
fn the_guests_end_reaches_the_host_after_its_last_byte() {
    let mut connection = established();
    connection.receive(Op::Data, &packet(Op::Data, 0, (BUFFER, 0)), b"last").unwrap();
    receive(&mut connection, Op::Shutdown, SHUTDOWN_SEND).unwrap();
    assert!(!connection.pass_on_end());
    connection.delivered(4);
    assert!(connection.pass_on_end());
    assert!(!connection.pass_on_end(), "once");
    assert_eq!(connection.window(), BUFFER, "the other direction continues");
    assert_eq!(receive(&mut connection, Op::Data, 0), Err(Broken), "it promised to send no more");
}

#[test]
fn a_closed_guest_gets_its_reset_after_all_data() {
    let mut connection = established();
    connection.receive(Op::Data, &packet(Op::Data, 0, (BUFFER, 0)), b"last").unwrap();
    receive(&mut connection, Op::Shutdown, SHUTDOWN_BOTH).unwrap();
    assert!(connection.needs_deadline());
    assert_eq!(connection.take_control(), None);
    connection.delivered(4);
    assert_eq!(connection.take_control(), Some((Op::Reset, 0)));
    assert!(connection.over());
}

#[test]
fn a_guest_that_resets_does_not_cut_off_what_it_sent() {
    let mut connection = established();
    connection.receive(Op::Data, &packet(Op::Data, 0, (BUFFER, 0)), b"last").unwrap();
    receive(&mut connection, Op::Reset, 0).unwrap();
    assert!(!connection.over());
    assert_eq!(connection.window(), 0);
    connection.delivered(4);
    assert!(connection.over());
    assert_eq!(connection.take_control(), None, "a reset is not answered");
}

#[test]
fn each_half_of_the_hosts_end_is_announced() {
    let mut connection = established();
    connection.note_host_send_closed();
    assert_eq!(connection.take_control(), Some((Op::Shutdown, SHUTDOWN_SEND)));
    assert_eq!(connection.take_control(), None);
    assert!(!connection.needs_deadline(), "the guest may continue to send forever");
    connection.note_host_receive_closed();
    assert_eq!(connection.take_control(), Some((Op::Shutdown, SHUTDOWN_BOTH)));
    assert!(connection.needs_deadline());
}

#[test]
fn when_both_have_sent_everything_the_connection_closes() {
    let mut connection = established();
    receive(&mut connection, Op::Shutdown, SHUTDOWN_SEND).unwrap();
    connection.note_host_send_closed();
    assert_eq!(connection.take_control(), Some((Op::Shutdown, SHUTDOWN_BOTH)));
}

#[test]
fn a_guest_that_closed_receiving_is_sent_no_more() {
    let mut connection = established();
    receive(&mut connection, Op::Shutdown, SHUTDOWN_RECEIVE).unwrap();
    assert_eq!(connection.window(), 0);
    connection.starved();
    assert_eq!(connection.take_control(), None);
}

#[test]
fn data_to_a_host_that_closed_is_dropped_but_counted() {
    let mut connection = established();
    connection.note_host_receive_closed();
    let header = packet(Op::Data, 0, (BUFFER, 0));
    for _ in 0..8 {
        connection.receive(Op::Data, &header, &vec![7; BUFFER as usize / 4]).unwrap();
        assert_eq!(connection.backlog_len(), 0);
    }
    let mut stamped = header;
    connection.write_credit(&mut stamped);
    assert_eq!(stamped.fwd_cnt.get(), 2 * BUFFER);
}

#[test]
fn credit_is_asked_for_once() {
    let mut connection = Connection::incoming(&packet(Op::Request, 0, (10, 0)));
    connection.take_control();
    connection.sent(10);
    connection.starved();
    connection.starved();
    assert_eq!(connection.take_control(), Some((Op::CreditRequest, 0)));
    connection.starved();
    assert_eq!(connection.take_control(), None);
    connection.receive(Op::CreditUpdate, &packet(Op::CreditUpdate, 0, (10, 4)), &[]).unwrap();
    assert_eq!(connection.window(), 4);
    connection.sent(4);
    connection.starved();
    assert_eq!(connection.take_control(), Some((Op::CreditRequest, 0)));
}

#[test]
fn a_drained_backlog_returns_its_memory() {
    let mut connection = established();
    for _ in 0..10 {
        let room = BUFFER as usize - connection.backlog_len();
        for piece in vec![7; room].chunks(64 << 10) {
            connection.receive(Op::Data, &packet(Op::Data, 0, (BUFFER, 0)), piece).unwrap();
        }
        connection.delivered(BUFFER as usize - 1);
        assert!(connection.backlog_capacity() <= 32 << 10, "{} for 1 byte", connection.backlog_capacity());
    }
    let (front, rest) = connection.backlog();
    assert_eq!([front, rest].concat(), [7]);
}
