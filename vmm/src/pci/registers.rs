//! The common configuration structure (virtio 1.2, §4.1.4.3) and the device status machine (§2.1, §3.1): pure.
//!
//! The settings that the device uses never change while it uses them: features lock at FEATURES_OK, a queue's location
//! at `queue_enable`, and everything at DRIVER_OK. Only a reset unlocks them.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};

use crate::virtio::QueueState;

/// Length of the structure in bytes, including `queue_device`.
pub(super) const SIZE: u64 = 0x38;
/// "No vector" of a queue or of the configuration.
pub(super) const NO_VECTOR: u16 = 0xFFFF;

const ACKNOWLEDGE: u8 = VIRTIO_CONFIG_S_ACKNOWLEDGE as u8;
const DRIVER: u8 = VIRTIO_CONFIG_S_DRIVER as u8;
const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
const FAILED: u8 = VIRTIO_CONFIG_S_FAILED as u8;

/// The action that a write requests from the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// No action.
    Nothing,
    /// DRIVER_OK: start.
    Start,
    /// Status 0: stop, then [`Registers::reset`].
    Reset,
    /// The driver enabled a queue at an invalid location.
    BadQueue(u16),
}

/// Values that a read returns in addition to the registers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Live {
    /// `config_generation`.
    pub generation: u8,
    /// The device needs a reset.
    pub needs_reset: bool,
    /// A reset was requested and is not done yet: the status is not 0 yet (§4.1.4.3.2).
    pub resetting: bool,
}

/// One queue's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queue {
    /// Its location, size, progress, and whether it is enabled.
    pub state: QueueState,
    /// Its MSI-X vector.
    pub vector: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Registers {
    offered: u64,
    vectors: u16,
    offered_half: u32,
    accepted_half: u32,
    accepted: u64,
    status: u8,
    config_vector: u16,
    selected: u16,
    queues: Vec<Queue>,
}

impl Registers {
    /// The registers after power-on. `vectors` is the number of MSI-X vectors.
    pub(super) fn new(offered: u64, queue_sizes: &[u16], vectors: u16) -> Self {
        let queue = |size: &u16| Queue {
            state: QueueState { max_size: *size, size: *size, ..Default::default() },
            vector: NO_VECTOR,
        };
        Self {
            offered,
            vectors,
            offered_half: 0,
            accepted_half: 0,
            accepted: 0,
            status: 0,
            config_vector: NO_VECTOR,
            selected: 0,
            queues: queue_sizes.iter().map(queue).collect(),
        }
    }

    /// Restores the state after power-on.
    pub(super) fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.state.max_size).collect();
        *self = Self::new(self.offered, &sizes, self.vectors);
    }

    pub(super) fn features(&self) -> u64 {
        self.accepted
    }

    /// Whether the driver has set DRIVER_OK.
    pub(super) fn is_driver_ok(&self) -> bool {
        self.status & DRIVER_OK != 0
    }

    /// The configuration's MSI-X vector.
    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector
    }

    pub(super) fn queues(&self) -> &[Queue] {
        &self.queues
    }

    /// Stores the states of the queues after the device has stopped.
    pub(super) fn set_queue_states(&mut self, states: Vec<QueueState>) {
        for (queue, state) in self.queues.iter_mut().zip(states) {
            queue.state = state;
        }
    }

    /// Reads the register at `offset`, which must be read in one piece (§4.1.3.1), a 64-bit one in halves; else zero.
    pub(super) fn read(&self, offset: u64, len: usize, live: Live) -> u32 {
        let queue = self.queues.get(usize::from(self.selected));
        let state = queue.map(|queue| queue.state).unwrap_or_default();
        match (offset, len) {
            (0x00, 4) => self.offered_half,
            (0x04, 4) => half(self.offered, self.offered_half),
            (0x08, 4) => self.accepted_half,
            (0x0C, 4) => half(self.accepted, self.accepted_half),
            (0x10, 2) => self.config_vector.into(),
            (0x12, 2) => self.queues.len() as u32,
            (0x14, 1) if live.needs_reset => u32::from(self.status | NEEDS_RESET),
            (0x14, 1) if live.resetting => u32::from(self.status | ACKNOWLEDGE),
            (0x14, 1) => self.status.into(),
            (0x15, 1) => live.generation.into(),
            (0x16, 2) => self.selected.into(),
            // 0: there is no such queue.
            (0x18, 2) => state.size.into(),
            (0x1A, 2) => queue.map_or(NO_VECTOR, |queue| queue.vector).into(),
            (0x1C, 2) => u32::from(state.ready),
            (0x1E, 2) => self.selected.into(),
            (0x20 | 0x24, 4) => half(state.desc_table, (offset - 0x20) as u32 / 4),
            (0x28 | 0x2C, 4) => half(state.avail_ring, (offset - 0x28) as u32 / 4),
            (0x30 | 0x34, 4) => half(state.used_ring, (offset - 0x30) as u32 / 4),
            _ => 0,
        }
    }

    /// Writes the register at `offset`. `is_valid` says whether a queue can lie where it is. Writes that come at the
    /// wrong time or have the wrong length are dropped.
    pub(super) fn write(
        &mut self,
        offset: u64,
        len: usize,
        value: u32,
        is_valid: impl Fn(&QueueState) -> bool,
    ) -> Request {
        match (offset, len) {
            (0x00, 4) => self.offered_half = value,
            (0x08, 4) => self.accepted_half = value,
            (0x0C, 4) if self.status & FEATURES_OK == 0 => set_half(&mut self.accepted, self.accepted_half, value),
            (0x14, 1) => return self.write_status(value as u8),
            (0x16, 2) => self.selected = value as u16,
            // Vectors are handed to the workers at DRIVER_OK.
            (0x10, 2) if !self.is_driver_ok() => self.config_vector = self.vector(value as u16),
            (0x1A, 2) if !self.is_driver_ok() => {
                let vector = self.vector(value as u16);
                if let Some(queue) = self.queues.get_mut(usize::from(self.selected)) {
                    queue.vector = vector;
                }
            }
            (0x18.., _) if !self.is_driver_ok() => return self.write_queue(offset, len, value, is_valid),
            _ => {}
        }
        Request::Nothing
    }

    fn write_queue(&mut self, offset: u64, len: usize, value: u32, is_valid: impl Fn(&QueueState) -> bool) -> Request {
        let Some(queue) = self.queues.get_mut(usize::from(self.selected)) else { return Request::Nothing };
        let state = &mut queue.state;
        match (offset, len) {
            // Enabled: its location is locked, and only a reset disables it (§4.1.4.3.2).
            _ if state.ready => {}
            (0x18, 2) => state.size = value as u16,
            (0x1C, 2) if value == 1 => {
                state.ready = is_valid(&QueueState { ready: true, ..*state });
                if !state.ready {
                    return Request::BadQueue(self.selected);
                }
            }
            (0x20 | 0x24, 4) => set_half(&mut state.desc_table, (offset - 0x20) as u32 / 4, value),
            (0x28 | 0x2C, 4) => set_half(&mut state.avail_ring, (offset - 0x28) as u32 / 4, value),
            (0x30 | 0x34, 4) => set_half(&mut state.used_ring, (offset - 0x30) as u32 / 4, value),
            _ => {}
        }
        Request::Nothing
    }

    /// A vector the driver may use, or none: it reads back which it got (§4.1.5.1.2.1).
    fn vector(&self, vector: u16) -> u16 {
        if vector < self.vectors { vector } else { NO_VECTOR }
    }

    /// §3.1.1: each step needs the ones before it, and bits are only ever added.
    fn write_status(&mut self, value: u8) -> Request {
        if value == 0 {
            return Request::Reset;
        }
        self.status |= value & FAILED;
        for (bit, before) in [(ACKNOWLEDGE, 0), (DRIVER, ACKNOWLEDGE), (FEATURES_OK, DRIVER), (DRIVER_OK, FEATURES_OK)]
        {
            let is_new = value & bit != 0 && self.status & bit == 0;
            let is_refused = bit == FEATURES_OK && !self.can_serve_accepted();
            if !is_new || self.status & before != before || is_refused {
                continue;
            }
            self.status |= bit;
            if bit == DRIVER_OK {
                return Request::Start;
            }
        }
        Request::Nothing
    }

    fn can_serve_accepted(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & (1 << VIRTIO_F_VERSION_1) != 0
    }
}

fn half(value: u64, half: u32) -> u32 {
    match half {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, half: u32, new: u32) {
    match half {
        0 => *value = *value & !0xFFFF_FFFF | u64::from(new),
        1 => *value = *value & 0xFFFF_FFFF | u64::from(new) << 32,
        _ => {}
    }
}
