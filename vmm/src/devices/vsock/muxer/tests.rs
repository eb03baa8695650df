//! Tests the muxer between real Unix sockets and a guest that the test simulates packet by packet.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{CLIENTS_MAX, CONNECTIONS_MAX, Muxer, Outgoing, REFUSALS_MAX, TIMEOUT};
use crate::devices::vsock::connection::BUFFER;
use crate::devices::vsock::host::Host;
use crate::devices::vsock::packet::{self, HOST_CID, Header, Key, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

const GUEST: u64 = 3;
const PORT: u32 = 1024;
/// The guest's buffer size for each connection.
const GUEST_BUFFER: u32 = 5000;

struct Rig {
    muxer: Muxer,
    path: PathBuf,
    now: Instant,
    /// Bytes that the guest received and took, per connection.
    taken: HashMap<Key, u32>,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let muxer = Muxer::new(GUEST, Host::listen(&path).unwrap()).unwrap();
        Self { muxer, path, now: Instant::now(), taken: HashMap::new(), _dir: dir }
    }

    fn client(&mut self, line: &str) -> UnixStream {
        let mut client = UnixStream::connect(&self.path).unwrap();
        client.write_all(line.as_bytes()).unwrap();
        self.events();
        client
    }

    fn events(&mut self) {
        // One call handles a bounded batch of events. This many calls are enough for all connections.
        for _ in 0..2 * CONNECTIONS_MAX / 64 {
            self.muxer.handle_events(self.now).unwrap();
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.muxer.expire(self.now);
    }

    /// The next packet to the guest. The guest takes payload at once.
    fn receive(&mut self) -> Option<(Key, u16, Header, Vec<u8>)> {
        while self.muxer.has_turns() {
            let (key, outgoing) = self.muxer.next(4000, self.now)?;
            let (header, payload) = match outgoing {
                Outgoing::Control(header) => (Some(header), Vec::new()),
                Outgoing::Data(stream, limit) => {
                    let mut payload = vec![0; limit];
                    let read = { stream }.read(&mut payload);
                    payload.truncate(*read.as_ref().unwrap_or(&0));
                    (self.muxer.was_read(key, read, self.now), payload)
                }
            };
            if let Some(header) = header {
                assert_eq!((header.src_cid.get(), header.dst_cid.get()), (HOST_CID, GUEST));
                assert_eq!(header.len.get() as usize, payload.len());
                *self.taken.entry(key).or_default() += payload.len() as u32;
                return Some((key, header.op.get(), header, payload));
            }
        }
        None
    }

    /// The operations that the guest receives until there are no more.
    fn receive_all(&mut self) -> Vec<(Key, u16)> {
        std::iter::from_fn(|| self.receive().map(|(key, op, ..)| (key, op))).collect()
    }

    fn send_flags(&mut self, key: Key, op: Op, flags: u32, payload: &[u8]) {
        let header = Header {
            src_cid: GUEST.into(),
            dst_cid: HOST_CID.into(),
            src_port: key.guest_port.into(),
            dst_port: key.host_port.into(),
            flags: flags.into(),
            buf_alloc: GUEST_BUFFER.into(),
            fwd_cnt: (*self.taken.get(&key).unwrap_or(&0)).into(),
            ..packet::header(key, GUEST, op, payload.len() as u32)
        };
        let copy = |buffer: &mut [u8]| {
            buffer.copy_from_slice(&payload[..buffer.len()]);
            Ok(())
        };
        self.muxer.take(&header, copy, self.now).unwrap();
    }

    fn send(&mut self, key: Key, op: Op, payload: &[u8]) {
        self.send_flags(key, op, 0, payload);
    }

    /// A connection from a client, accepted by the guest, whose client has read the `OK` line.
    fn connect(&mut self) -> (UnixStream, Key) {
        let mut client = self.client(&format!("CONNECT {PORT}\n"));
        let (key, op, ..) = self.receive().expect("a request");
        assert_eq!((op, key.guest_port), (Op::Request.number(), PORT));
        self.send(key, Op::Response, &[]);
        let line = format!("OK {}\n", key.host_port);
        let mut answer = vec![0; line.len()];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(String::from_utf8(answer).unwrap(), line);
        (client, key)
    }

    /// Bytes a client can read now, and whether the stream ended after them.
    fn drain(&mut self, client: &UnixStream) -> (Vec<u8>, bool) {
        client.set_nonblocking(true).unwrap();
        let (mut bytes, mut buffer) = (Vec::new(), [0; 1 << 16]);
        loop {
            match { client }.read(&mut buffer) {
                Ok(0) => return (bytes, true),
                Ok(count) => bytes.extend(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return (bytes, false),
                Err(error) => panic!("{error}"),
            }
            self.events();
        }
    }
}

fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn a_client_is_greeted_and_what_it_wrote_early_arrives_once() {
    let mut rig = Rig::new();
    let mut client = rig.client("CONNECT 1024\nearly");
    let (key, op, ..) = rig.receive().unwrap();
    assert_eq!(op, Op::Request.number());
    assert!(rig.receive().is_none(), "nothing before the guest's response");
    rig.send(key, Op::Response, &[]);
    let (_, op, _, payload) = rig.receive().unwrap();
    assert_eq!((op, &payload[..]), (Op::Data.number(), &b"early"[..]));
    assert!(rig.receive().is_none());
    client.write_all(b"late").unwrap();
    rig.events();
    assert_eq!(rig.receive().unwrap().3, b"late");
}

#[test]
fn a_line_may_come_in_pieces() {
    let mut rig = Rig::new();
    let mut client = rig.client("CONN");
    assert!(rig.receive().is_none());
    for piece in ["ECT 10", "24", "\n"] {
        client.write_all(piece.as_bytes()).unwrap();
        rig.events();
    }
    assert_eq!(rig.receive().unwrap().0.guest_port, PORT);
}

#[test]
fn without_a_listener_in_the_guest_the_client_is_closed_at_once() {
    let mut rig = Rig::new();
    let client = rig.client("CONNECT 5\n");
    let (key, ..) = rig.receive().unwrap();
    rig.send(key, Op::Reset, &[]);
    assert_eq!(rig.drain(&client), (vec![], true));
    assert_eq!(rig.muxer.connections(), 0);
    assert!(!rig.muxer.has_deadlines());
}

#[test]
fn a_client_with_another_protocol_is_closed_at_once() {
    let mut rig = Rig::new();
    for line in ["GET / HTTP/1.1\r\n", "CONNECT x\n", &"A".repeat(4000)] {
        let client = rig.client(line);
        // Unix clients see a close with unread bytes as a reset, and a close without as an end.
        let mut byte = [0];
        assert!(matches!((&client).read(&mut byte), Ok(0) | Err(_)), "{line:?}");
    }
    assert_eq!(rig.receive_all(), []);
}

#[test]
fn the_guest_reaches_a_socket_beside_ours_and_no_other() {
    let mut rig = Rig::new();
    let listener = UnixListener::bind(format!("{}_77", rig.path.display())).unwrap();
    let (there, missing) = (Key { guest_port: 9, host_port: 77 }, Key { guest_port: 9, host_port: 78 });
    rig.send(missing, Op::Request, &[]);
    assert_eq!(rig.receive_all(), [(missing, Op::Reset.number())]);
    rig.send(there, Op::Request, &[]);
    assert_eq!(rig.receive_all(), [(there, Op::Response.number())]);
    let (mut stream, _) = listener.accept().unwrap();
    rig.send(there, Op::Data, b"hello");
    let mut heard = [0; 5];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
    stream.write_all(b"world").unwrap();
    rig.events();
    assert_eq!(rig.receive().unwrap().3, b"world");
    rig.send(there, Op::Request, &[]);
    assert_eq!(rig.receive_all(), [(there, Op::Reset.number())], "a second request on a live connection");
}

#[test]
fn packets_for_no_connection_are_reset_and_resets_are_not() {
    let mut rig = Rig::new();
    let key = Key { guest_port: 1, host_port: 2 };
    for op in [Op::Response, Op::Data, Op::Shutdown, Op::CreditUpdate, Op::CreditRequest] {
        rig.send(key, op, &[]);
        assert_eq!(rig.receive_all(), [(key, Op::Reset.number())], "{op:?}");
    }
    rig.send(key, Op::Reset, &[]);
    assert_eq!(rig.receive_all(), []);
}

#[test]
fn resets_owed_are_bounded() {
    let mut rig = Rig::new();
    for port in 0..REFUSALS_MAX as u32 {
        assert!(rig.muxer.can_take());
        rig.send(Key { guest_port: port, host_port: 2 }, Op::Data, &[]);
    }
    assert!(!rig.muxer.can_take());
    assert!(rig.receive().is_some());
    assert!(rig.muxer.can_take());
}

#[test]
fn bulk_both_ways_arrives_whole_whatever_the_credit() {
    let mut rig = Rig::new();
    let (mut client, key) = rig.connect();
    client.set_nonblocking(true).unwrap();
    let (to_guest, to_host) = (noise(1, 3_000_000), noise(2, 3_000_000));
    let (mut written, mut sent) = (0, 0);
    let (mut at_guest, mut at_host) = (Vec::<u8>::new(), Vec::<u8>::new());
    let (mut told, mut host_forwarded) = (0, 0u32);
    let mut buffer = vec![0; 70_000];
    while at_guest.len() < to_guest.len() || at_host.len() < to_host.len() {
        let before = (at_guest.len(), at_host.len(), written, sent);
        if let Ok(count) = client.write(&to_guest[written..(written + 30_000).min(to_guest.len())]) {
            written += count;
        }
        if let Ok(count) = client.read(&mut buffer) {
            at_host.extend(&buffer[..count]);
        }
        rig.events();
        while let Some((_, op, header, payload)) = rig.receive() {
            assert_ne!(op, Op::Reset.number());
            at_guest.extend(payload);
            host_forwarded = header.fwd_cnt.get();
            assert!(at_guest.len() - told <= GUEST_BUFFER as usize, "beyond the guest's credit");
        }
        let room = BUFFER - (sent as u32).wrapping_sub(host_forwarded);
        let len = (room as usize).min(60_000).min(to_host.len() - sent);
        if len > 0 {
            rig.send(key, Op::Data, &to_host[sent..sent + len]);
            sent += len;
        } else {
            rig.send(key, Op::CreditUpdate, &[]);
        }
        told = at_guest.len();
        let after = (at_guest.len(), at_host.len(), written, sent);
        assert!(before != after || rig.muxer.has_turns(), "stuck at {after:?}");
    }
    assert!(at_guest == to_guest && at_host == to_host, "bytes changed on the way");
}

#[test]
fn a_guest_that_ignores_its_credit_is_reset() {
    let mut rig = Rig::new();
    let (client, key) = rig.connect();
    for _ in 0..64 {
        rig.send(key, Op::Data, &[7; 60_000]);
    }
    let resets = rig.receive_all().into_iter().filter(|(_, op)| *op == Op::Reset.number()).count();
    assert!(resets >= 1);
    assert_eq!(rig.muxer.connections(), 0);
    drop(client);
}

#[test]
fn a_half_closed_client_receives_the_rest() {
    let mut rig = Rig::new();
    let (client, key) = rig.connect();
    client.shutdown(Shutdown::Write).unwrap();
    rig.events();
    let (_, op, header, _) = rig.receive().unwrap();
    assert_eq!((op, header.flags.get()), (Op::Shutdown.number(), SHUTDOWN_SEND));
    rig.send(key, Op::Data, b"the answer");
    rig.send_flags(key, Op::Shutdown, SHUTDOWN_BOTH, &[]);
    assert_eq!(rig.receive_all(), [(key, Op::Reset.number())]);
    assert_eq!(rig.drain(&client), (b"the answer".to_vec(), true));
    assert_eq!(rig.muxer.connections(), 0);
}

#[test]
fn a_half_closed_guest_receives_the_rest() {
    let mut rig = Rig::new();
    let (mut client, key) = rig.connect();
    rig.send(key, Op::Data, b"question");
    rig.send_flags(key, Op::Shutdown, SHUTDOWN_SEND, &[]);
    assert_eq!(rig.drain(&client), (b"question".to_vec(), true));
    client.write_all(b"answer").unwrap();
    rig.events();
    assert_eq!(rig.receive().unwrap().3, b"answer");
    assert_eq!(rig.muxer.connections(), 1);
}

#[test]
fn a_client_that_writes_and_closes_loses_nothing() {
    let mut rig = Rig::new();
    let (mut client, key) = rig.connect();
    let sent = noise(3, 60_000);
    client.write_all(&sent).unwrap();
    drop(client);
    rig.events();
    let mut heard = Vec::new();
    let last = loop {
        match rig.receive() {
            Some((_, op, _, payload)) if op == Op::Data.number() => heard.extend(payload),
            Some((_, op, header, _)) if op == Op::Shutdown.number() => break header.flags.get(),
            Some((_, op, ..)) => assert_eq!(op, Op::CreditRequest.number()),
            None => rig.send(key, Op::CreditUpdate, &[]),
        }
    };
    assert_eq!(last, SHUTDOWN_BOTH);
    assert!(heard == sent);
    rig.send(key, Op::Reset, &[]);
    assert_eq!(rig.muxer.connections(), 0);
}

#[test]
fn a_client_that_leaves_before_the_answer_is_withdrawn() {
    let mut rig = Rig::new();
    let client = rig.client("CONNECT 1024\n");
    let (key, ..) = rig.receive().unwrap();
    drop(client);
    rig.events();
    assert_eq!(rig.receive_all(), [(key, Op::Reset.number())]);
    assert_eq!(rig.muxer.connections(), 0);
}

#[test]
fn a_guest_that_never_answers_loses_the_connection() {
    let mut rig = Rig::new();
    let client = rig.client("CONNECT 1024\n");
    let (key, ..) = rig.receive().unwrap();
    assert!(rig.muxer.has_deadlines());
    rig.pass(TIMEOUT / 2);
    assert_eq!(rig.muxer.connections(), 1);
    rig.pass(TIMEOUT / 2);
    assert_eq!(rig.receive_all(), [(key, Op::Reset.number())]);
    assert_eq!(rig.drain(&client), (vec![], true));
    assert!(!rig.muxer.has_deadlines());
}

#[test]
fn a_closed_connection_waits_for_its_last_packet_up_to_a_limit() {
    let mut rig = Rig::new();
    let (client, key) = rig.connect();
    assert!(!rig.muxer.has_deadlines(), "an open connection may be silent forever");
    drop(client);
    rig.events();
    assert_eq!(rig.receive_all(), [(key, Op::Shutdown.number())]);
    assert!(rig.muxer.has_deadlines());
    rig.pass(TIMEOUT);
    assert_eq!(rig.receive_all(), [(key, Op::Reset.number())]);
    assert_eq!(rig.muxer.connections(), 0);
}

#[test]
fn silent_clients_are_bounded_in_number_and_time() {
    let mut rig = Rig::new();
    let silent: Vec<UnixStream> = (0..CLIENTS_MAX).map(|_| rig.client("")).collect();
    let mut patient = rig.client("CONNECT 1024\n");
    assert_eq!(rig.receive_all(), [], "there is no room for it yet");
    rig.pass(TIMEOUT);
    for client in &silent {
        assert_eq!(rig.drain(client), (vec![], true));
    }
    let (key, ..) = rig.receive().expect("the patient client's request");
    rig.send(key, Op::Response, &[]);
    assert!(rig.drain(&patient).0.starts_with(b"OK "));
    patient.write_all(b"x").unwrap();
}

#[test]
fn connections_are_bounded() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let mut rig = Rig::new();
    let mut clients: Vec<_> = (0..CONNECTIONS_MAX).map(|_| rig.connect()).collect();
    assert_eq!(rig.muxer.connections(), CONNECTIONS_MAX);
    let one_too_many = rig.client("CONNECT 1024\n");
    assert_eq!(rig.drain(&one_too_many), (vec![], true));
    let key = Key { guest_port: 1, host_port: 2 };
    rig.send(key, Op::Request, &[]);
    assert_eq!(rig.receive_all(), [(key, Op::Reset.number())]);
    let (client, key) = clients.remove(17);
    drop(client);
    rig.send(key, Op::Reset, &[]);
    rig.connect();
    let keys: std::collections::HashSet<Key> = clients.iter().map(|(_, key)| *key).collect();
    assert_eq!(keys.len(), clients.len(), "a host port was given twice");
}

#[test]
fn unanswered_connections_leave_nothing_behind() {
    let mut rig = Rig::new();
    let listener = UnixListener::bind(format!("{}_77", rig.path.display())).unwrap();
    for port in 0..3000 {
        let key = Key { guest_port: port, host_port: 77 };
        rig.send(key, Op::Request, &[]);
        drop(listener.accept().unwrap());
        assert!(rig.muxer.has_turns(), "a response is owed");
        rig.send(key, Op::Reset, &[]);
        assert!(!rig.muxer.has_turns());
    }
    assert_eq!(rig.muxer.connections(), 0);
}

#[test]
fn a_guest_that_closed_receiving_learns_of_the_clients_end() {
    let mut rig = Rig::new();
    let (mut client, key) = rig.connect();
    rig.send_flags(key, Op::Shutdown, SHUTDOWN_RECEIVE, &[]);
    client.write_all(b"never read").unwrap();
    drop(client);
    rig.events();
    let (_, op, header, _) = rig.receive().unwrap();
    assert_eq!((op, header.flags.get()), (Op::Shutdown.number(), SHUTDOWN_BOTH));
}

#[test]
fn a_client_of_a_guest_that_takes_no_packets_is_closed() {
    let mut rig = Rig::new();
    let client = rig.client("CONNECT 1024\n");
    rig.pass(TIMEOUT);
    assert_eq!(rig.drain(&client), (vec![], true), "before the guest took its reset");
    assert!(rig.muxer.has_turns());
}

#[test]
fn a_new_driver_has_no_connections() {
    let mut rig = Rig::new();
    assert!(!rig.muxer.forget_all());
    let (client, key) = rig.connect();
    let waiting = rig.client("CONN");
    rig.send(Key { guest_port: 1, host_port: 1 }, Op::Data, &[]);
    assert!(rig.muxer.forget_all());
    assert_eq!(rig.drain(&client), (vec![], true));
    assert_eq!(rig.receive_all(), []);
    rig.send(key, Op::Data, b"x");
    assert_eq!(rig.receive_all(), [(key, Op::Reset.number())]);
    assert_eq!(rig.drain(&waiting), (vec![], false), "a client that has not asked yet may continue");
    rig.connect();
}

#[derive(Clone, Debug)]
enum Step {
    Packet { known: usize, op: u16, flags: u32, credit: (u32, u32), len: usize },
    Take(usize),
    Connect,
    Write(usize, usize),
    Read(usize),
    HalfClose(usize),
    Close(usize),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let credit = (prop_oneof![Just(0), Just(100_000), any::<u32>()], prop_oneof![Just(0), 0u32..100_000, any::<u32>()]);
    let packet = (0usize..8, 0u16..9, 0u32..5, credit, prop_oneof![0usize..100, Just(70_000)])
        .prop_map(|(known, op, flags, credit, len)| Step::Packet { known, op, flags, credit, len });
    let step = prop_oneof![
        6 => packet,
        3 => (0usize..10).prop_map(Step::Take),
        2 => Just(Step::Connect),
        2 => (0usize..8, 1usize..100_000).prop_map(|(client, len)| Step::Write(client, len)),
        2 => (0usize..8).prop_map(Step::Read),
        1 => (0usize..8).prop_map(Step::HalfClose),
        1 => (0usize..8).prop_map(Step::Close),
        1 => (0u64..15).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..150)
}

proptest! {
    /// With any guest and any clients, nothing panics; after all have disconnected, nothing is left.
    #[test]
    fn any_sequence_of_events_ends(steps in steps()) {
        let mut rig = Rig::new();
        let listener = UnixListener::bind(format!("{}_1", rig.path.display())).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (mut clients, mut keys) = (Vec::new(), vec![Key { guest_port: 1, host_port: 1 }]);
        for step in steps {
            match step {
                Step::Packet { known, op, flags, credit, len } => {
                    let key = keys[known % keys.len()];
                    let header = Header {
                        src_cid: GUEST.into(),
                        dst_cid: HOST_CID.into(),
                        src_port: key.guest_port.into(),
                        dst_port: key.host_port.into(),
                        len: (len as u32).into(),
                        op: op.into(),
                        flags: flags.into(),
                        buf_alloc: credit.0.into(),
                        fwd_cnt: credit.1.into(),
                        ..packet::header(key, GUEST, Op::Data, 0)
                    };
                    if rig.muxer.can_take() {
                        rig.muxer.take(&header, |_| Ok(()), rig.now).unwrap();
                    }
                }
                Step::Take(count) => {
                    for _ in 0..count {
                        let Some((key, ..)) = rig.receive() else { break };
                        keys.push(key);
                    }
                }
                Step::Connect => {
                    let client = rig.client("CONNECT 1\n");
                    client.set_nonblocking(true).unwrap();
                    clients.push(client);
                }
                Step::Write(client, len) if !clients.is_empty() => {
                    let at = client % clients.len();
                    let _ = clients[at].write(&vec![1; len]);
                }
                Step::Read(client) if !clients.is_empty() => {
                    let at = client % clients.len();
                    let _ = clients[at].read(&mut [0; 50_000]);
                }
                Step::HalfClose(client) if !clients.is_empty() => {
                    let _ = clients[client % clients.len()].shutdown(Shutdown::Write);
                }
                Step::Close(client) if !clients.is_empty() => {
                    clients.swap_remove(client % clients.len());
                }
                Step::Wait(seconds) => rig.pass(Duration::from_secs(seconds)),
                _ => {}
            }
            if let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(true).unwrap();
                clients.push(stream);
            }
            rig.events();
        }
        drop((clients, listener));
        // All clients have disconnected. The guest takes its packets, sends nothing, and gives no credit. Only a
        // connection that holds bytes for it may still wait.
        for _ in 0..10 {
            rig.events();
            while rig.receive().is_some() {}
            rig.pass(TIMEOUT);
        }
        for key in keys {
            rig.muxer.take(&reset_from(key), |_| Ok(()), rig.now).unwrap();
        }
        while rig.receive().is_some() {}
        prop_assert_eq!(rig.muxer.connections(), 0);
        prop_assert!(!rig.muxer.has_turns() && !rig.muxer.has_deadlines());
    }
}

fn reset_from(key: Key) -> Header {
    Header {
        src_cid: GUEST.into(),
        dst_cid: HOST_CID.into(),
        src_port: key.guest_port.into(),
        dst_port: key.host_port.into(),
        ..packet::header(key, GUEST, Op::Reset, 0)
    }
}
