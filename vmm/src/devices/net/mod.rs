//! virtio-net on a TAP interface (§5.1), with checksum and segmentation offloads both ways.

mod buffers;
mod header;
mod mac;
mod rx;
mod tap;
mod tx;

#[cfg(test)]
pub(crate) mod tests;

use std::io;
use std::sync::Arc;

use garret_api::vmm::NetConfig;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net as net;
use zerocopy::little_endian::U16;
use zerocopy::{Immutable, IntoBytes};

use self::header::Offloads;
use self::rx::Rx;
use self::tap::{Tap, TapError};
use self::tx::Tx;
use crate::rate_limit::RateLimiter;
use crate::seccomp::Role;
use crate::virtio::{self, Backend, ConfigBytes, Device, EventOps, EventSet, Events, Fault, Identity, Ring};

/// Packets (sent) or buffers (received) in flight.
const QUEUE_SIZE: u16 = 256;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// What an event means: its data.
const TAP: u32 = 0;
const RECEIVE_TOKENS: u32 = 1;
const TRANSMIT_TOKENS: u32 = 2;

/// The features that the device offers. No control queue: nothing here changes while the machine runs.
const FEATURES: u64 = 1 << net::VIRTIO_NET_F_CSUM
    | 1 << net::VIRTIO_NET_F_GUEST_CSUM
    | 1 << net::VIRTIO_NET_F_MTU
    | 1 << net::VIRTIO_NET_F_MAC
    | 1 << net::VIRTIO_NET_F_GUEST_TSO4
    | 1 << net::VIRTIO_NET_F_GUEST_TSO6
    | 1 << net::VIRTIO_NET_F_HOST_TSO4
    | 1 << net::VIRTIO_NET_F_HOST_TSO6
    | 1 << net::VIRTIO_NET_F_MRG_RXBUF;

/// Why a network interface could not be created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error("network interface {tap}: {mac:?} is no hardware address; write it as 02:00:00:00:00:01, not a group's")]
    Mac {
        /// The interface.
        tap: String,
        /// The given value.
        mac: String,
    },
    #[error("network interface {tap}: cannot make a timer: {source}")]
    Timer {
        /// The interface.
        tap: String,
        /// The host's error.
        source: io::Error,
    },
    #[error(transparent)]
    Device(#[from] virtio::BuildError),
}

/// The interface `eth<index>`.
pub(crate) fn new(index: usize, config: &NetConfig) -> Result<Device, Error> {
    let mac = mac::parse(&config.mac).ok_or_else(|| Error::Mac { tap: config.tap.clone(), mac: config.mac.clone() })?;
    let backend = NetBackend::new(config)?;
    let space = Space { mac, mtu: backend.tap.mtu.into(), ..Space::default() };
    let identity = Identity {
        name: format!("net{index}"),
        device_type: VIRTIO_ID_NET,
        features: FEATURES,
        queue_sizes: vec![QUEUE_SIZE; 2],
        config: Arc::new(ConfigBytes(space.as_bytes().to_vec())),
    };
    Ok(Device::new(identity, vec![(backend, 0..2)], Role::Net)?)
}

/// The configuration space (§5.1.4).
#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct Space {
    mac: [u8; 6],
    status: U16,
    max_virtqueue_pairs: U16,
    mtu: U16,
}

/// The device's worker part: one thread for both directions.
struct NetBackend {
    tap: Tap,
    rx: Rx,
    tx: Tx,
}

impl NetBackend {
    fn new(config: &NetConfig) -> Result<Self, Error> {
        let tap = Tap::attach(&config.tap)?;
        let limiter =
            || RateLimiter::new(config.rate_limit).map_err(|source| Error::Timer { tap: config.tap.clone(), source });
        Ok(Self { tap, rx: Rx::new(limiter()?), tx: Tx::new(limiter()?) })
    }
}

impl Backend for NetBackend {
    fn start(&mut self, features: u64, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        self.tap.set_offloads(Offloads::accepted(features))?;
        self.rx.start(features, self.tap.mtu);
        self.tx.start(features);
        // Edge-triggered: while packets wait and no buffer is free, a level trigger would wake the worker forever.
        let both = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        ops.add(Events::with_data(&self.tap, TAP, both))?;
        ops.add(Events::with_data(&self.rx.limiter, RECEIVE_TOKENS, EventSet::IN))?;
        ops.add(Events::with_data(&self.tx.limiter, TRANSMIT_TOKENS, EventSet::IN))?;
        Ok(())
    }

    fn kicked(&mut self, queue: usize, rings: &mut [Ring]) -> Result<(), Fault> {
        match queue {
            RECEIVE => self.rx.serve(&self.tap, &mut rings[RECEIVE]),
            _ => self.tx.serve(&self.tap, &mut rings[TRANSMIT]),
        }
    }

    fn ready(&mut self, events: Events, rings: &mut [Ring]) -> Result<(), Fault> {
        let (source, events) = (events.data(), events.event_set());
        match source {
            RECEIVE_TOKENS => self.rx.limiter.elapsed(),
            TRANSMIT_TOKENS => self.tx.limiter.elapsed(),
            _ => {}
        }
        if source == TRANSMIT_TOKENS || (source == TAP && self.tx.waiting && events.contains(EventSet::OUT)) {
            self.tx.serve(&self.tap, &mut rings[TRANSMIT])?;
        }
        if source == RECEIVE_TOKENS || (source == TAP && events.contains(EventSet::IN)) {
            self.rx.serve(&self.tap, &mut rings[RECEIVE])?;
        }
        Ok(())
    }

    fn stop(&mut self, rings: &mut [Ring]) -> Result<(), Fault> {
        self.rx.stop(&mut rings[RECEIVE])
    }
}
