//! The whole device: a driver's queues on one side, Unix sockets on the other.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use garret_api::vmm::{SocketAt, VsockConfig};
use zerocopy::{FromBytes, IntoBytes};

use super::muxer::REFUSALS_MAX;
use super::packet::{self, HEADER_LEN, HOST_CID, Header, Key, Op};
use crate::devices::conformance::{Request, Subject};
use crate::virtio::testing::{HUNG, Rig};

const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;
const EVENTS: usize = 2;
const CID: u32 = 3;

fn path(config: &VsockConfig) -> std::path::PathBuf {
    config.socket.path().unwrap().to_owned()
}

fn config() -> (tempfile::TempDir, VsockConfig) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("v");
    (dir, VsockConfig { cid: CID, socket: SocketAt::Path(socket) })
}

fn from_guest(key: Key, op: Op, payload: &[u8], taken: u32) -> Vec<u8> {
    let header = Header {
        src_cid: u64::from(CID).into(),
        dst_cid: HOST_CID.into(),
        src_port: key.guest_port.into(),
        dst_port: key.host_port.into(),
        buf_alloc: (1 << 16).into(),
        fwd_cnt: taken.into(),
        ..packet::header(key, 0, op, payload.len() as u32)
    };
    [header.as_bytes(), payload].concat()
}

fn op_of(bytes: &[u8]) -> u16 {
    Header::read_from_prefix(bytes).unwrap().0.op.get()
}

/// Data for a connection that does not exist, the reset that answers it, and a reset, which is not answered.
pub(crate) fn subject() -> Subject {
    let key = Key { guest_port: 1, host_port: 2 };
    let stray = from_guest(key, Op::Data, b"payload", 0);
    let reset = from_guest(key, Op::Reset, b"", 0);
    Subject {
        build: || {
            let (dir, config) = config();
            (Box::new(super::new(&config).unwrap()), Box::new(dir))
        },
        session: vec![
            Request::new(FROM_GUEST, &[&stray], &[], <[u8]>::is_empty),
            Request::new(TO_GUEST, &[], &[HEADER_LEN as u32, 100], |bytes| {
                bytes.len() == HEADER_LEN && op_of(bytes) == Op::Reset.number()
            }),
            Request::new(FROM_GUEST, &[&reset], &[], <[u8]>::is_empty),
        ],
    }
}

/// A driver that keeps buffers in the queue for packets to the guest.
struct Guest {
    rig: Rig,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Guest {
    fn new() -> Self {
        let (dir, config) = config();
        let mut rig = Rig::new(Box::new(super::new(&config).unwrap()));
        rig.start();
        let mut guest = Self { rig, socket: path(&config), _dir: dir };
        guest.give_buffers();
        guest
    }

    fn give_buffers(&mut self) {
        for _ in 0..16 {
            self.give_buffer();
        }
    }

    fn give_buffer(&mut self) {
        // Any layout is valid: here the header is in two descriptors, and the payload in the rest of the second.
        self.rig.queues[TO_GUEST].add(&[], &[20, 4000]);
        self.rig.queues[TO_GUEST].kick();
    }

    fn receive(&mut self) -> (Key, Header, Vec<u8>) {
        let bytes = self.rig.queues[TO_GUEST].wait_used().bytes;
        self.give_buffer();
        let (header, payload) = Header::read_from_prefix(&bytes).unwrap();
        let key = Key { guest_port: header.dst_port.get(), host_port: header.src_port.get() };
        assert_eq!(payload.len(), header.len.get() as usize);
        (key, header, payload.to_vec())
    }

    /// Sends a packet as current drivers do: header and payload in one chain of several descriptors.
    fn send(&mut self, key: Key, op: Op, payload: &[u8], taken: u32) {
        let bytes = from_guest(key, op, payload, taken);
        let pieces: Vec<Vec<u8>> = bytes.chunks(bytes.len().div_ceil(3)).map(<[u8]>::to_vec).collect();
        let queue = &mut self.rig.queues[FROM_GUEST];
        queue.add(&pieces, &[]);
        queue.kick();
        queue.wait_used();
    }

    fn connect(&mut self) -> (UnixStream, Key) {
        let mut client = UnixStream::connect(&self.socket).unwrap();
        client.set_read_timeout(Some(HUNG)).unwrap();
        client.write_all(b"CONNECT 7\n").unwrap();
        let (key, header, _) = self.receive();
        assert_eq!((header.op.get(), key.guest_port), (Op::Request.number(), 7));
        self.send(key, Op::Response, &[], 0);
        let mut line = vec![0; format!("OK {}\n", key.host_port).len()];
        client.read_exact(&mut line).unwrap();
        (client, key)
    }
}

#[test]
fn an_echo_returns_to_the_client() {
    let mut guest = Guest::new();
    let (mut client, key) = guest.connect();
    let mut taken = 0;
    for round in 0..200usize {
        let sent: Vec<u8> = (0..1 + round * 17).map(|at| (at * round) as u8).collect();
        client.write_all(&sent).unwrap();
        let mut heard = Vec::new();
        while heard.len() < sent.len() {
            let (from, header, payload) = guest.receive();
            assert_eq!(from, key);
            if header.op.get() == Op::Data.number() {
                taken += payload.len() as u32;
                guest.send(key, Op::Data, &payload, taken);
                heard.extend(payload);
            }
        }
        let mut back = vec![0; sent.len()];
        client.read_exact(&mut back).unwrap();
        assert!(heard == sent && back == sent);
    }
}

#[test]
fn connections_survive_a_pause_and_end_with_the_driver() {
    let mut guest = Guest::new();
    let (mut client, key) = guest.connect();
    let states = guest.rig.stop();
    client.write_all(b"while it slept").unwrap();
    guest.rig.resume(states);
    assert_eq!(guest.receive().2, b"while it slept");

    guest.rig.stop();
    guest.rig.start();
    guest.give_buffers();
    guest.rig.queues[EVENTS].add(&[], &[8]);
    guest.rig.queues[EVENTS].kick();
    assert_eq!(guest.rig.queues[EVENTS].wait_used().bytes, [0; 4], "TRANSPORT_RESET");
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    guest.send(key, Op::Data, b"x", 0);
    assert_eq!(guest.receive().1.op.get(), Op::Reset.number());
    guest.connect();
}

#[test]
fn data_waits_for_room_in_the_ring() {
    let (_dir, config) = config();
    let mut rig = Rig::new(Box::new(super::new(&config).unwrap()));
    rig.start();
    let mut client = UnixStream::connect(path(&config)).unwrap();
    client.write_all(b"CONNECT 7\n").unwrap();
    // No buffer yet: the request arrives once there is one.
    let mut guest = Guest { rig, socket: path(&config), _dir };
    guest.give_buffer();
    let (key, header, _) = guest.receive();
    assert_eq!((header.op.get(), key.guest_port), (Op::Request.number(), 7));
}

#[test]
fn a_guest_that_takes_no_answers_waits_and_loses_none() {
    let (_dir, config) = config();
    let mut rig = Rig::new(Box::new(super::new(&config).unwrap()));
    rig.start();
    let mut guest = Guest { rig, socket: path(&config), _dir };
    let total = REFUSALS_MAX as u32 + 20;
    let (mut sent, mut answered) = (0, 0);
    // The device takes a limited number of packets, then leaves the rest in the ring.
    while sent < total {
        let bytes = from_guest(Key { guest_port: sent, host_port: 2 }, Op::Data, b"stray", 0);
        let queue = &mut guest.rig.queues[FROM_GUEST];
        if queue.try_add(&[bytes], &[]).is_some() {
            sent += 1;
        }
        queue.kick();
        while queue.used().is_some() {}
    }
    while answered < total {
        guest.give_buffer();
        let bytes = guest.rig.queues[TO_GUEST].wait_used().bytes;
        let header = Header::read_from_prefix(&bytes).unwrap().0;
        assert_eq!((header.dst_port.get(), header.op.get()), (answered, Op::Reset.number()));
        answered += 1;
    }
}

#[test]
fn a_bad_configuration_is_one_clear_line() {
    let (_dir, mut config) = config();
    for cid in [0, 1, 2, u32::MAX] {
        config.cid = cid;
        let error = super::new(&config).err().unwrap();
        assert_eq!(error.to_string(), format!("vsock: the context id must be 3 or more and not 4294967295, not {cid}"));
    }
    config.cid = 3;
    config.socket = SocketAt::Path("/missing/folder/v".into());
    let error = super::new(&config).err().unwrap().to_string();
    assert_eq!(error, "vsock: cannot listen on /missing/folder/v: No such file or directory (os error 2)");
}
