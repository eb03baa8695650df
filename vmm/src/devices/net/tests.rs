use std::net::UdpSocket;
use std::process::Command;

use garret_api::vmm::{Bucket, RateLimit};
use nix::sched::{CloneFlags, unshare};
use zerocopy::FromBytes;

use super::header::{HEADER, Header};
use super::*;
use crate::devices::conformance::{Request, Subject};
use crate::virtio::VirtioDevice;
use crate::virtio::testing::{BUFFER, Rig};

const GUEST_MAC: &str = "02:00:00:00:00:02";
const GUEST: &str = "10.9.8.2:7000";
const HOST: &str = "10.9.8.1:7001";
const MTU: usize = 9000;
/// Ethernet, IPv4 and UDP headers.
const UDP: usize = 14 + 20 + 8;

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("iproute2 is needed");
    assert!(status.success(), "ip {arguments}: this test needs root, for a network namespace of its own");
}

/// Moves this thread into a new network namespace with a TAP in it.
fn network() {
    unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root, for a network namespace of its own");
    // Otherwise the host's stack would use up buffers with its own packets. A host without IPv6 has no such file.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    ip("tuntap add dev tap0 mode tap vnet_hdr");
    ip("address add 10.9.8.1/24 dev tap0");
    ip(&format!("link set tap0 up mtu {MTU} address 02:00:00:00:00:01"));
    ip(&format!("neigh add 10.9.8.2 lladdr {GUEST_MAC} dev tap0"));
}

fn config() -> NetConfig {
    NetConfig { tap: "tap0".to_owned(), mac: GUEST_MAC.to_owned(), rate_limit: None }
}

pub(crate) fn subject() -> Subject {
    fn build() -> (Box<dyn VirtioDevice>, Box<dyn std::any::Any>) {
        network();
        (Box::new(new(0, &config()).unwrap()), Box::new(()))
    }
    let packet = udp(Header::default(), b"hello");
    Subject {
        build,
        session: vec![
            Request::new(TRANSMIT, &[&packet], &[], |bytes| bytes.is_empty()),
            Request::new(TRANSMIT, &[&packet[..HEADER], &packet[HEADER..]], &[], |bytes| bytes.is_empty()),
        ],
    }
}

fn checksum(bytes: &[u8], seed: u32) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum = words.fold(u64::from(seed), |sum, word| sum + u64::from(word));
    let folded = (0..4).fold(sum, |sum, _| (sum & 0xFFFF) + (sum >> 16));
    folded as u16
}

/// A datagram from the guest to the host as the driver sends it. With `NEEDS_CSUM` its checksum is left to the device.
fn udp(header: Header, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let mut ip =
        [&[0x45, 0][..], &(20 + length).to_be_bytes(), &[0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 8, 2, 10, 9, 8, 1]].concat();
    let sum = !checksum(&ip, 0);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let pseudo = checksum(&ip[12..20], 17 + u32::from(length));
    let sum = if header.flags == 1 { pseudo } else { 0 };
    let udp =
        [&7000_u16.to_be_bytes()[..], &7001_u16.to_be_bytes(), &length.to_be_bytes(), &sum.to_be_bytes()].concat();
    let ethernet = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    [zerocopy::IntoBytes::as_bytes(&header), &ethernet, &ip, &udp, payload].concat()
}

struct Guest {
    rig: Rig,
    socket: UdpSocket,
}

impl Guest {
    fn new() -> Self {
        Self::with(&config(), u64::MAX)
    }

    fn with(config: &NetConfig, accept: u64) -> Self {
        network();
        let mut rig = Rig::new(Box::new(new(0, config).unwrap()));
        rig.features &= accept;
        rig.start();
        let socket = UdpSocket::bind(HOST).unwrap();
        socket.set_read_timeout(Some(crate::virtio::testing::HUNG)).unwrap();
        let mut guest = Self { rig, socket };
        guest.wait_up();
        guest
    }

    /// Waits until the worker has set the offloads, and the host's stack has noticed that the VMM is attached. Before
    /// that the stack drops what it should send.
    fn wait_up(&mut self) {
        self.send(&udp(Header::default(), b"up"));
        assert_eq!(self.host_receives(), b"up");
        let up = || {
            let shown = Command::new("ip").args(["-o", "link", "show", "tap0"]).output().unwrap().stdout;
            let shown = String::from_utf8(shown).unwrap();
            shown.contains("state UP") && !shown.contains("qdisc noop")
        };
        assert!((0..1000).any(|_| up()), "the TAP does not come up");
    }

    fn post(&mut self, count: usize, len: u32) {
        for _ in 0..count {
            self.rig.queues[RECEIVE].add(&[], &[len]);
        }
        self.rig.queues[RECEIVE].kick();
    }

    /// The next datagram to the guest: its header and payload. Other packets of the host's stack are skipped.
    fn receive(&mut self) -> (Header, Vec<u8>) {
        loop {
            let mut packet = self.rig.queues[RECEIVE].wait_used().bytes;
            let header = Header::read_from_bytes(&packet[..HEADER]).unwrap();
            for _ in 1..header.num_buffers.get() {
                packet.extend(self.rig.queues[RECEIVE].used().expect("all buffers of a packet come at once").bytes);
            }
            if packet[HEADER + 12..].starts_with(&[8, 0]) && packet[HEADER + 23] == 17 {
                return (header, packet[HEADER + UDP..].to_vec());
            }
        }
    }

    fn send(&mut self, packet: &[u8]) {
        self.rig.queues[TRANSMIT].add(&[packet.to_vec()], &[]);
        self.rig.queues[TRANSMIT].kick();
        self.rig.queues[TRANSMIT].wait_used();
    }

    fn host_receives(&self) -> Vec<u8> {
        let mut bytes = vec![0; MTU];
        let (count, from) = self.socket.recv_from(&mut bytes).unwrap();
        assert_eq!(from.to_string(), GUEST);
        bytes.truncate(count);
        bytes
    }
}

#[test]
fn packets_reach_the_host() {
    let mut guest = Guest::new();
    guest.send(&udp(Header::default(), b"plain"));
    assert_eq!(guest.host_receives(), b"plain");
    let offload = Header { flags: 1, csum_start: 34.into(), csum_offset: 6.into(), ..Header::default() };
    guest.send(&udp(offload, b"checksum left to the host"));
    assert_eq!(guest.host_receives(), b"checksum left to the host");
}

#[test]
fn packets_reach_the_guest() {
    let mut guest = Guest::new();
    guest.post(20, 2048);
    for payload in ["one", "two", "three"] {
        guest.socket.send_to(payload.as_bytes(), GUEST).unwrap();
        let (header, received) = guest.receive();
        assert_eq!(received, payload.as_bytes());
        assert_eq!(header.num_buffers.get(), 1);
        assert_eq!(header.flags, 1, "the checksum is left to the guest");
    }
}

#[test]
fn a_guest_without_offloads_gets_whole_packets() {
    let mut guest = Guest::with(&config(), !(1 << net::VIRTIO_NET_F_GUEST_CSUM));
    guest.post(20, 2048);
    guest.socket.send_to(b"whole", GUEST).unwrap();
    let (header, received) = guest.receive();
    assert_eq!((header.flags, header.gso_type, received), (0, 0, b"whole".to_vec()));
}

#[test]
fn a_large_packet_is_spread_over_buffers() {
    let mut guest = Guest::new();
    let payload: Vec<u8> = (0..8000_u32).map(|at| at as u8).collect();
    guest.post(40, 1526);
    for _ in 0..3 {
        guest.socket.send_to(&payload, GUEST).unwrap();
        let (header, received) = guest.receive();
        assert_eq!(header.num_buffers.get(), 6);
        assert_eq!(received, payload);
        guest.post(6, 1526);
    }
}

#[test]
fn without_merged_buffers_a_packet_has_one() {
    let mut guest = Guest::with(&config(), !(1 << net::VIRTIO_NET_F_MRG_RXBUF));
    let payload = vec![0x3C; 8000];
    guest.post(20, BUFFER);
    guest.socket.send_to(&payload, GUEST).unwrap();
    let (header, received) = guest.receive();
    assert_eq!((header.num_buffers.get(), received), (1, payload));
}

#[test]
fn a_packet_waits_until_the_guest_has_room() {
    let mut guest = Guest::new();
    let payload: Vec<u8> = (0..8000_u32).map(|at| (at * 7) as u8).collect();
    // Room for half of it.
    guest.post(3, 1526);
    guest.socket.send_to(&payload, GUEST).unwrap();
    guest.socket.send_to(b"behind it", GUEST).unwrap();
    guest.post(2, 1526);
    assert_eq!(guest.rig.queues[RECEIVE].used(), None);
    guest.post(8, 1526);
    assert_eq!(guest.receive().1, payload);
    assert_eq!(guest.receive().1, b"behind it");
}

#[test]
fn a_packet_that_can_never_fit_is_dropped() {
    let mut guest = Guest::new();
    let size = usize::from(guest.rig.queues[RECEIVE].size);
    guest.post(size, 100);
    guest.socket.send_to(&vec![1; 8000], GUEST).unwrap();
    guest.socket.send_to(b"after it", GUEST).unwrap();
    assert_eq!(guest.receive().1, b"after it");
}

#[test]
fn without_buffers_packets_wait_in_the_tap() {
    let mut guest = Guest::new();
    for payload in [b"a", b"b", b"c"] {
        guest.socket.send_to(payload, GUEST).unwrap();
    }
    guest.post(40, 2048);
    for payload in [b"a", b"b", b"c"] {
        assert_eq!(guest.receive().1, payload);
    }
}

#[test]
fn buffers_survive_a_pause() {
    let mut guest = Guest::new();
    guest.post(50, 2048);
    guest.socket.send_to(b"before", GUEST).unwrap();
    assert_eq!(guest.receive().1, b"before");
    let states = guest.rig.stop();
    assert_eq!(states[RECEIVE].next_avail, states[RECEIVE].next_used, "unused buffers were put back");
    guest.socket.send_to(b"meanwhile", GUEST).unwrap();
    guest.rig.resume(states);
    assert_eq!(guest.receive().1, b"meanwhile");
}

#[test]
fn an_invalid_packet_is_dropped_and_the_next_is_sent() {
    let mut guest = Guest::new();
    let good = udp(Header::default(), b"good");
    let beyond = Header { flags: 1, csum_start: 5000.into(), csum_offset: 6.into(), ..Header::default() };
    let segments = Header { flags: 0, gso_type: 1, gso_size: 1.into(), ..Header::default() };
    let foreign = Header { gso_type: 3, gso_size: 8.into(), flags: 1, ..Header::default() };
    for bad in
        [good[..HEADER].to_vec(), good[..HEADER + 13].to_vec(), udp(beyond, b""), udp(segments, b""), udp(foreign, b"")]
    {
        guest.send(&bad);
    }
    guest.send(&good);
    assert_eq!(guest.host_receives(), b"good");
    assert!(!guest.rig.is_broken());
}

#[test]
fn a_packet_shorter_than_its_header_is_a_fault() {
    let mut guest = Guest::new();
    guest.rig.queues[TRANSMIT].add(&[vec![0; HEADER - 1]], &[]);
    guest.rig.queues[TRANSMIT].kick();
    let interrupt = guest.rig.device.config_interrupt().clone();
    assert_eq!(guest.rig.queues[TRANSMIT].wait_used_unless(|| interrupt.is_reset_needed()), None);
}

#[test]
fn a_receive_buffer_shorter_than_the_header_is_a_fault() {
    let mut guest = Guest::new();
    guest.post(60, 8);
    guest.socket.send_to(b"x", GUEST).unwrap();
    let interrupt = guest.rig.device.config_interrupt().clone();
    assert_eq!(guest.rig.queues[RECEIVE].wait_used_unless(|| interrupt.is_reset_needed()), None);
    // The driver's reset clears the fault.
    guest.rig.stop();
    guest.rig.start();
    guest.post(20, 2048);
    guest.socket.send_to(b"again", GUEST).unwrap();
    while guest.receive().1 != b"again" {}
}

#[test]
fn a_limited_interface_moves_everything_in_the_end() {
    let operations = Some(Bucket { per_second: 200, burst: 2 });
    let limit = Some(RateLimit { bytes: None, operations });
    let mut guest = Guest::with(&NetConfig { rate_limit: limit, ..config() }, u64::MAX);
    guest.post(40, 2048);
    for at in 0..10_u8 {
        guest.rig.queues[TRANSMIT].add(&[udp(Header::default(), &[at])], &[]);
        guest.socket.send_to(&[at], GUEST).unwrap();
    }
    guest.rig.queues[TRANSMIT].kick();
    for at in 0..10_u8 {
        assert_eq!(guest.receive().1, [at]);
        assert_eq!(guest.host_receives(), [at]);
    }
}

#[test]
fn the_guest_learns_its_address_and_mtu() {
    network();
    let device = new(0, &config()).unwrap();
    let mut space = [0; 12];
    device.identity().config.read(0, &mut space);
    assert_eq!(space[..6], [2, 0, 0, 0, 0, 2]);
    assert_eq!(space[10..], (MTU as u16).to_le_bytes());
}

#[test]
fn a_bad_interface_is_one_clear_line() {
    network();
    ip("link add dummy0 type bridge");
    let refused = |tap: &str, mac: &str| {
        let config = NetConfig { tap: tap.to_owned(), mac: mac.to_owned(), rate_limit: None };
        new(0, &config).err().expect("it must be refused").to_string()
    };
    assert_eq!(refused("tap9", GUEST_MAC), "network interface tap9: there is none; create the TAP first");
    assert!(refused("", GUEST_MAC).contains("there is none"));
    assert!(refused("a-name-that-is-too-long", GUEST_MAC).contains("there is none"));
    assert!(refused("dummy0", GUEST_MAC).contains("not a TAP"), "{}", refused("dummy0", GUEST_MAC));
    assert!(refused("tap0", "nonsense").contains("\"nonsense\" is no hardware address"));
    let _first = new(0, &config()).unwrap();
    assert!(refused("tap0", GUEST_MAC).contains("in use by another machine"));
}
