//! All connections of one machine: their owners, the order in which they send to the guest, and their limits.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::Connection;
use super::handshake::{self, Line};
use super::host::Host;
use super::packet::{self, Header, Key, MAX_PAYLOAD, Op, Verdict};
use super::peer::Peer;

/// The most connections at the same time, in both directions together.
pub(super) const CONNECTIONS_MAX: usize = 1024;
/// The most clients that have not finished their first line; more wait in the listener's queue.
pub(super) const CLIENTS_MAX: usize = 64;
/// The most pending resets for connections that do not exist. When this many are pending, the guest's packets wait.
pub(super) const REFUSALS_MAX: usize = 256;
/// The most bytes from the guest that wait for slow readers on the host, over all connections. A connection that would
/// exceed it is reset.
pub(super) const BACKLOG_MAX: usize = 64 << 20;
/// How long a client may take to send its first line, the guest to answer, or a closed connection to make progress.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// The first host port for connections that the host requests; it is above the ports of usual servers.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// The most events taken from the kernel at once.
const EVENTS_MAX: usize = 64;
/// The listener's event token.
const LISTENER: u64 = 0;

/// See the module.
pub(super) struct Muxer {
    guest_cid: u64,
    host: Host,
    /// Watches the listener and every socket. Separate from the worker's epoll, because it must exist while the device
    /// is paused.
    epoll: Epoll,
    owners: HashMap<u64, Owner>,
    next_token: u64,
    clients: usize,
    /// The listener has connections that were not accepted because there was no room.
    listener_ready: bool,
    peers: HashMap<Key, Peer>,
    next_host_port: u32,
    /// Connections that may have something for the guest, each at most once.
    turns: VecDeque<Key>,
    refusals: VecDeque<Key>,
    backlog: usize,
    /// Connections that wait for something that may never come: the start of the wait, and their progress then.
    timed_waits: BTreeMap<Key, (Instant, u32)>,
    scratch: Vec<u8>,
}

/// The owner of a socket.
enum Owner {
    Client { stream: UnixStream, since: Instant },
    Peer(Key),
}

/// The next item for the guest.
pub(super) enum Outgoing<'m> {
    /// A packet without payload.
    Control(Header),
    /// Bytes to read from a socket directly into the ring, at most this many.
    Data(&'m UnixStream, usize),
}

impl Muxer {
    /// A muxer for the guest `guest_cid` and the sockets of `host`.
    pub(super) fn new(guest_cid: u64, host: Host) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, LISTENER);
        epoll.ctl(ControlOperation::Add, host.listener().as_raw_fd(), event)?;
        Ok(Self {
            guest_cid,
            host,
            epoll,
            owners: HashMap::new(),
            next_token: LISTENER + 1,
            clients: 0,
            listener_ready: false,
            peers: HashMap::new(),
            next_host_port: FIRST_HOST_PORT,
            turns: VecDeque::new(),
            refusals: VecDeque::new(),
            backlog: 0,
            timed_waits: BTreeMap::new(),
            scratch: Vec::new(),
        })
    }

    /// Readable when [`handle_events`](Self::handle_events) has work.
    pub(super) fn events(&self) -> &impl AsRawFd {
        &self.epoll
    }

    #[cfg(test)]
    pub(super) fn connections(&self) -> usize {
        self.peers.len()
    }

    /// Whether a deadline is pending: then [`expire`](Self::expire) must be called regularly.
    pub(super) fn has_deadlines(&self) -> bool {
        self.clients > 0 || self.listener_ready || !self.timed_waits.is_empty()
    }

    /// Drops every connection, because the guest's side of them is gone. Returns whether there were any.
    pub(super) fn forget_all(&mut self) -> bool {
        let had = !self.peers.is_empty();
        self.owners.retain(|_, owner| matches!(owner, Owner::Client { .. }));
        self.peers.clear();
        self.turns.clear();
        self.refusals.clear();
        self.timed_waits.clear();
        self.backlog = 0;
        had
    }

    /// Handles a bounded batch of the kernel's events. If there are more, [`events`](Self::events) becomes readable
    /// again.
    pub(super) fn handle_events(&mut self, now: Instant) -> io::Result<()> {
        let mut events = [EpollEvent::default(); EVENTS_MAX];
        let count = match self.epoll.wait(0, &mut events) {
            Err(error) if error.kind() == ErrorKind::Interrupted => 0,
            result => result?,
        };
        for event in &events[..count] {
            if event.data() == LISTENER {
                self.listener_ready = true;
                continue;
            }
            match self.owners.get(&event.data()) {
                Some(Owner::Client { .. }) => self.read_line(event.data(), now),
                Some(Owner::Peer(key)) => self.wake(*key, event.event_set(), now),
                None => {}
            }
        }
        self.accept(now);
        Ok(())
    }

    /// Ends waits that have reached their deadline.
    pub(super) fn expire(&mut self, now: Instant) {
        let late = |since: Instant| now.saturating_duration_since(since) >= TIMEOUT;
        let count = self.owners.len();
        self.owners.retain(|_, owner| !matches!(owner, Owner::Client { since, .. } if late(*since)));
        self.clients -= count - self.owners.len();
        let waiting: Vec<Key> = self.timed_waits.keys().copied().collect();
        for key in waiting {
            let (Some(peer), Some(wait)) = (self.peers.get_mut(&key), self.timed_waits.get_mut(&key)) else { continue };
            let progress = peer.connection.progress();
            if wait.1 != progress {
                *wait = (now, progress);
            } else if late(wait.0) {
                peer.abort();
                self.after_change(key, now);
            }
        }
        self.accept(now);
    }

    fn accept(&mut self, now: Instant) {
        // Bounded: otherwise clients that disconnect at once could keep the guest's packets waiting.
        for _ in 0..CLIENTS_MAX {
            if !self.listener_ready || self.clients >= CLIENTS_MAX {
                return;
            }
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let stream = match rustix::net::accept_with(self.host.listener(), flags) {
                Ok(fd) => UnixStream::from(fd),
                Err(Errno::AGAIN) => {
                    self.listener_ready = false;
                    return;
                }
                Err(Errno::CONNABORTED | Errno::INTR) => continue,
                // No file descriptors left: retried with the next event or tick.
                Err(_) => return,
            };
            let Ok(token) = self.watch(&stream) else { continue };
            self.owners.insert(token, Owner::Client { stream, since: now });
            self.clients += 1;
            self.read_line(token, now);
        }
    }

    fn watch(&mut self, stream: &UnixStream) -> io::Result<u64> {
        let token = self.next_token;
        let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        self.epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), EpollEvent::new(events, token))?;
        self.next_token += 1;
        Ok(token)
    }

    /// Reads a client's first line without taking more bytes: the following bytes are for the guest.
    fn read_line(&mut self, token: u64, now: Instant) {
        let Some(Owner::Client { stream, .. }) = self.owners.get(&token) else { return };
        let mut buffer = [0; handshake::LINE_MAX];
        let seen = match rustix::net::recv(stream, &mut buffer[..], RecvFlags::PEEK) {
            Ok((_, 0)) => Line::Bad,
            Ok((_, count)) => handshake::parse(&buffer[..count]),
            Err(Errno::AGAIN | Errno::INTR) => Line::Incomplete,
            Err(_) => Line::Bad,
        };
        if seen == Line::Incomplete {
            return;
        }
        self.clients -= 1;
        let Some(Owner::Client { stream, .. }) = self.owners.remove(&token) else { return };
        let Line::Connect { port, len } = seen else { return };
        // These bytes were just seen in the socket, so this call takes all of them.
        let taken = rustix::net::recv(&stream, &mut buffer[..len], RecvFlags::empty());
        if !matches!(taken, Ok((_, count)) if count == len) || self.peers.len() >= CONNECTIONS_MAX {
            return;
        }
        let key = Key { guest_port: port, host_port: self.free_host_port(port) };
        self.adopt(key, Connection::outgoing(), stream, token, now);
    }

    fn free_host_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let host_port = self.next_host_port;
            self.next_host_port = host_port.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            // The loop ends, because there are fewer connections than ports.
            if !self.peers.contains_key(&Key { guest_port, host_port }) {
                return host_port;
            }
        }
    }

    fn adopt(&mut self, key: Key, connection: Connection, stream: UnixStream, token: u64, now: Instant) {
        self.owners.insert(token, Owner::Peer(key));
        self.peers.insert(key, Peer::new(connection, stream, token));
        self.after_change(key, now);
    }

    fn wake(&mut self, key: Key, events: EventSet, now: Instant) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.wake(events);
        self.after_change(key, now);
    }

    /// Whether there is room to take a packet from the guest.
    pub(super) fn can_take(&self) -> bool {
        self.refusals.len() < REFUSALS_MAX
    }

    /// Takes one packet from the guest. Calls `payload` with a buffer to fill if the packet's bytes are needed.
    pub(super) fn take(
        &mut self,
        header: &Header,
        payload: impl FnOnce(&mut [u8]) -> io::Result<()>,
        now: Instant,
    ) -> io::Result<()> {
        let (key, op) = match packet::classify(header, self.guest_cid) {
            Verdict::Take(key, op) => (key, op),
            Verdict::Refuse(key) => {
                self.refusals.push_back(key);
                return Ok(());
            }
            Verdict::Ignore => return Ok(()),
        };
        if !self.peers.contains_key(&key) {
            match op {
                Op::Request => self.answer_request(key, header, now),
                Op::Reset => {}
                _ => self.refusals.push_back(key),
            }
            return Ok(());
        }
        let len = if op == Op::Data { header.len.get().min(MAX_PAYLOAD + 1) as usize } else { 0 };
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(len, 0);
        payload(&mut scratch)?;
        if let Some(peer) = self.peers.get_mut(&key) {
            let was_established = peer.connection.established();
            let fits = len <= MAX_PAYLOAD as usize && self.backlog + len <= BACKLOG_MAX;
            if !fits || peer.connection.receive(op, header, &scratch).is_err() {
                peer.abort();
            } else if peer.connection.established() != was_established {
                peer.send_ok(key);
            }
            self.after_change(key, now);
        }
        self.scratch = scratch;
        Ok(())
    }

    /// Handles the guest's request for a host port: a Unix socket beside the listener, if a process listens on it.
    fn answer_request(&mut self, key: Key, request: &Header, now: Instant) {
        let connected = if self.peers.len() < CONNECTIONS_MAX {
            self.host.connect(key.host_port).and_then(|stream| Ok((self.watch(&stream)?, stream)))
        } else {
            Err(ErrorKind::QuotaExceeded.into())
        };
        match connected {
            Ok((token, stream)) => self.adopt(key, Connection::incoming(request), stream, token, now),
            Err(_) => self.refusals.push_back(key),
        }
    }

    /// Whether [`next`](Self::next) has a connection to check.
    pub(super) fn has_turns(&self) -> bool {
        !self.refusals.is_empty() || !self.turns.is_empty()
    }

    /// The next item for the guest, if it has room for a header and `room` bytes. After `Data`, the caller must call
    /// [`was_read`](Self::was_read).
    pub(super) fn next(&mut self, room: usize, now: Instant) -> Option<(Key, Outgoing<'_>)> {
        if let Some(key) = self.refusals.pop_front() {
            return Some((key, Outgoing::Control(packet::header(key, self.guest_cid, Op::Reset, 0))));
        }
        while let Some(key) = self.turns.pop_front() {
            let Some(peer) = self.peers.get_mut(&key) else { continue };
            peer.queued = false;
            if let Some((op, flags)) = peer.connection.take_control() {
                let mut header = packet::header(key, self.guest_cid, op, 0);
                header.flags = flags.into();
                peer.connection.write_credit(&mut header);
                self.after_change(key, now);
                return Some((key, Outgoing::Control(header)));
            }
            let limit = room.min(MAX_PAYLOAD as usize).min(peer.connection.window() as usize);
            if peer.readable && limit > 0 {
                // Looked up again, because a borrow that is returned in one arm of a loop lasts for the whole loop.
                let stream = &self.peers[&key].stream;
                return Some((key, Outgoing::Data(stream, limit)));
            }
        }
        None
    }

    /// Reports the result of the read for [`Outgoing::Data`]. Returns the header to put before the bytes, if there are
    /// any.
    pub(super) fn was_read(&mut self, key: Key, result: io::Result<usize>, now: Instant) -> Option<Header> {
        let peer = self.peers.get_mut(&key)?;
        let header = match result {
            Ok(0) => {
                peer.ended(false);
                None
            }
            Ok(count) => {
                // At most the requested number, which was at most MAX_PAYLOAD.
                let count = count as u32;
                peer.connection.sent(count);
                let mut header = packet::header(key, self.guest_cid, Op::Data, count);
                peer.connection.write_credit(&mut header);
                Some(header)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                peer.readable = false;
                None
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => None,
            Err(_) => {
                peer.ended(true);
                None
            }
        };
        self.after_change(key, now);
        header
    }

    /// Applies the consequences of a change of the connection: writes to the host, waits for a turn, or ends it.
    fn after_change(&mut self, key: Key, now: Instant) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.flush();
        let before = std::mem::replace(&mut peer.counted, peer.connection.backlog_len());
        self.backlog = self.backlog - before + peer.counted;
        if peer.connection.over() {
            self.backlog -= peer.counted;
            self.remove(key);
            return;
        }
        if peer.readable {
            peer.connection.starved();
        }
        if !peer.queued && (peer.connection.has_pending_control() || peer.readable && peer.connection.window() > 0) {
            peer.queued = true;
            self.turns.push_back(key);
        }
        if peer.connection.needs_deadline() {
            let progress = peer.connection.progress();
            self.timed_waits.entry(key).or_insert((now, progress));
        } else {
            self.timed_waits.remove(&key);
        }
    }

    fn remove(&mut self, key: Key) {
        self.timed_waits.remove(&key);
        if let Some(peer) = self.peers.remove(&key) {
            // Closing the socket removes it from the epoll set.
            self.owners.remove(&peer.token);
            if peer.queued {
                // Otherwise a guest that opens and resets connections without taking answers would fill the queue.
                self.turns.retain(|waiting| *waiting != key);
            }
        }
    }
}
