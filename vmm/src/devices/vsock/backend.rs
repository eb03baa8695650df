//! The backend of virtio-vsock. It serves the three queues: packets to the guest, packets from it, and events (virtio
//! 1.2 §5.10.2).

use std::io::Read;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use zerocopy::{FromZeros, IntoBytes};

use super::muxer::{Muxer, Outgoing};
use super::packet::{HEADER_LEN, Header};
use crate::timer::Timer;
use crate::virtio::{Backend, Chain, EventOps, EventSet, Events, Fault, Ring, Served};

const TO_GUEST: usize = 0;

/// What an event means: its data.
const MUXER: u32 = 0;
const TIMER: u32 = 1;
/// Interval for checking deadlines while there are any.
const TICK: Duration = Duration::from_secs(1);

/// `struct virtio_vsock_event` with the only defined event, TRANSPORT_RESET (§5.10.6.7): all connections are gone.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// Serves the queues from one thread; [`Muxer`] does the rest.
pub(crate) struct VsockBackend {
    muxer: Muxer,
    timer: Timer,
    ticking: bool,
    /// Whether the guest must be notified that its connections are gone.
    announce_reset: bool,
}

impl VsockBackend {
    pub(super) fn new(muxer: Muxer) -> std::io::Result<Self> {
        Ok(Self { muxer, timer: Timer::new()?, ticking: false, announce_reset: false })
    }

    /// Moves packets in both directions until one side has no more packets or no room.
    fn pump(&mut self, rings: &mut [Ring]) -> Result<(), Fault> {
        let [to_guest, from_guest, events] = rings else { return Err(Fault::Bug("three rings are wanted")) };
        let now = Instant::now();
        self.announce(events)?;
        loop {
            let stuck = self.take_packets(from_guest, now)?;
            self.send_packets(to_guest, now)?;
            // Packets of the guest wait only for room for the answers that they may need.
            if !stuck || !self.muxer.can_take() {
                break;
            }
        }
        self.tick_while_needed()
    }

    /// Returns whether packets were left because there was no room for answers.
    fn take_packets(&mut self, ring: &mut Ring, now: Instant) -> Result<bool, Fault> {
        let mut stuck = false;
        ring.drain(|chain| {
            if !self.muxer.can_take() {
                stuck = true;
                return Ok(Served::Stop);
            }
            self.take_packet(&chain, now).map(|()| Served::Used(0))
        })?;
        Ok(stuck)
    }

    fn take_packet(&mut self, chain: &Chain, now: Instant) -> Result<(), Fault> {
        let mut reader = chain.reader();
        let mut header = Header::new_zeroed();
        if reader.remaining() < HEADER_LEN {
            return Err(chain.too_short());
        }
        reader.read_exact(header.as_mut_bytes())?;
        if reader.remaining() < header.len.get() as usize {
            return Err(chain.too_short());
        }
        Ok(self.muxer.take(&header, |payload| reader.read_exact(payload), now)?)
    }

    /// Reserves room in the ring first, then reads the bytes: data read from a socket always has a destination.
    fn send_packets(&mut self, ring: &mut Ring, now: Instant) -> Result<(), Fault> {
        while self.muxer.has_turns() {
            let Some(permit) = ring.reserve()? else { return Ok(()) };
            let room = permit.chain().writable_len() as usize;
            if room < HEADER_LEN {
                return Err(permit.chain().too_short());
            }
            let Some((header, payload)) = self.next_packet(permit.chain(), now)? else { continue };
            std::io::Write::write_all(&mut permit.chain().writer(), header.as_bytes())?;
            permit.used((HEADER_LEN + payload) as u32)?;
        }
        Ok(())
    }

    /// The next packet's header and the length of its payload, which has already been written to the chain.
    fn next_packet(&mut self, chain: &Chain, now: Instant) -> Result<Option<(Header, usize)>, Fault> {
        let (_, body) = chain.writer().split_at(HEADER_LEN)?;
        match self.muxer.next(body.remaining(), now) {
            None => Ok(None),
            Some((_, Outgoing::Control(header))) => Ok(Some((header, 0))),
            Some((key, Outgoing::Data(stream, limit))) => {
                let read = body.split_at(limit)?.0.readv(stream.as_fd());
                let count = *read.as_ref().unwrap_or(&0);
                Ok(self.muxer.was_read(key, read, now).map(|header| (header, count)))
            }
        }
    }

    fn announce(&mut self, events: &mut Ring) -> Result<(), Fault> {
        if !self.announce_reset {
            return Ok(());
        }
        if let Some(permit) = events.reserve()? {
            if (permit.chain().writable_len() as usize) < TRANSPORT_RESET.len() {
                return Err(permit.chain().too_short());
            }
            std::io::Write::write_all(&mut permit.chain().writer(), &TRANSPORT_RESET)?;
            permit.used(TRANSPORT_RESET.len() as u32)?;
            self.announce_reset = false;
        }
        Ok(())
    }

    fn ticked(&mut self) {
        self.timer.clear();
        self.muxer.expire(Instant::now());
    }

    fn tick_while_needed(&mut self) -> Result<(), Fault> {
        let wanted = self.muxer.has_deadlines();
        if wanted != self.ticking {
            if wanted { self.timer.set(TICK, TICK) } else { self.timer.stop() }?;
            self.ticking = wanted;
        }
        Ok(())
    }
}

impl Backend for VsockBackend {
    fn reset(&mut self) {
        // A driver that starts again has no connections. A driver restored with a new device has some, and must drop
        // them.
        self.announce_reset = self.muxer.forget_all();
    }

    fn start(&mut self, _features: u64, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        ops.add(Events::with_data(self.muxer.events(), MUXER, EventSet::IN))?;
        Ok(ops.add(Events::with_data(&self.timer, TIMER, EventSet::IN))?)
    }

    fn kicked(&mut self, queue: usize, rings: &mut [Ring]) -> Result<(), Fault> {
        if queue == TO_GUEST {
            // Checking for a first buffer turns off kicks until the buffers run out.
            drop(rings[TO_GUEST].reserve()?);
        }
        self.pump(rings)
    }

    fn ready(&mut self, events: Events, rings: &mut [Ring]) -> Result<(), Fault> {
        if events.data() == TIMER {
            self.ticked();
        } else {
            self.muxer.handle_events(Instant::now())?;
        }
        self.pump(rings)
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::Host;
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    /// A tick and a kick wake the worker at the same time, and the kick ends the wait that needed the ticks.
    #[test]
    fn an_unneeded_tick_does_not_block_the_worker() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::listen(&folder.path().join("v")).unwrap();
        let mut backend = VsockBackend::new(Muxer::new(3, host).unwrap()).unwrap();
        backend.timer.set(Duration::ZERO, TICK).unwrap();
        backend.ticking = true;
        poll(&mut [PollFd::new(&backend.timer, PollFlags::IN)], None).unwrap();
        backend.tick_while_needed().unwrap();
        assert!(!backend.ticking);
        backend.ticked();
    }
}
