//! The messages between driver and device (§5.15.6), and the layout of the configuration space (§5.15.4). Pure.

/// Length of a request in bytes: type, padding, then address, number of blocks and padding.
pub(super) const REQUEST_LEN: usize = 24;
/// Length of a response in bytes: type, padding, state.
pub(super) const RESPONSE_LEN: usize = 10;
/// Length of the configuration space in bytes.
pub(super) const CONFIG_LEN: usize = 56;

/// Blocks as the driver sends them, unchecked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    /// Guest address of the first block.
    pub address: u64,
    pub count: u16,
}

/// A request of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Plug these blocks.
    Plug(Blocks),
    /// Unplug these blocks.
    Unplug(Blocks),
    /// Unplug all blocks.
    UnplugAll,
    /// Return whether they are plugged.
    State(Blocks),
    /// An unknown type.
    Unknown,
}

impl Request {
    /// Parses a request. Fields that its type does not use are ignored.
    pub(super) fn parse(bytes: &[u8; REQUEST_LEN]) -> Self {
        let [kind0, kind1, _, _, _, _, _, _, address @ .., count0, count1, _, _, _, _, _, _] = *bytes;
        let blocks = Blocks { address: u64::from_le_bytes(address), count: u16::from_le_bytes([count0, count1]) };
        match u16::from_le_bytes([kind0, kind1]) {
            0 => Self::Plug(blocks),
            1 => Self::Unplug(blocks),
            2 => Self::UnplugAll,
            3 => Self::State(blocks),
            _ => Self::Unknown,
        }
    }

    /// Whether the request changes anything.
    pub(super) fn changes(&self) -> bool {
        !matches!(self, Self::State(_))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Response {
    /// Success.
    Ack,
    /// The requested size does not allow it; the driver reads the configuration again.
    Nack,
    /// Not possible now; the driver retries later.
    Busy,
    /// The request is not valid.
    Error,
    /// Whether the blocks are plugged.
    State(State),
}

/// The state of several blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Plugged,
    /// None is plugged.
    Unplugged,
    /// Some are plugged.
    Mixed,
}

impl Response {
    /// The response in the driver's format.
    pub(super) fn bytes(self) -> [u8; RESPONSE_LEN] {
        let (kind, state) = match self {
            Self::Ack => (0, 0),
            Self::Nack => (1, 0),
            Self::Busy => (2, 0),
            Self::Error => (3, 0),
            Self::State(State::Plugged) => (0, 0),
            Self::State(State::Unplugged) => (0, 1),
            Self::State(State::Mixed) => (0, 2),
        };
        [kind, 0, 0, 0, 0, 0, 0, 0, state, 0]
    }
}

/// The configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Config {
    /// The size of a block in bytes.
    pub block_size: u64,
    /// Guest address of the region.
    pub address: u64,
    /// The size of the region in bytes.
    pub region_size: u64,
    /// The largest part of it that may ever be plugged, in bytes.
    pub usable_region_size: u64,
    /// The plugged bytes.
    pub plugged_size: u64,
    /// The bytes that should be plugged.
    pub requested_size: u64,
}

impl Config {
    /// The configuration space in the driver's format.
    pub(super) fn bytes(&self) -> [u8; CONFIG_LEN] {
        let node_id_and_padding = 0;
        let fields = [
            self.block_size,
            node_id_and_padding,
            self.address,
            self.region_size,
            self.usable_region_size,
            self.plugged_size,
            self.requested_size,
        ];
        let mut bytes = [0; CONFIG_LEN];
        for (place, field) in bytes.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
impl Request {
    /// The request in the driver's format.
    pub(super) fn bytes(self) -> [u8; REQUEST_LEN] {
        let (kind, Blocks { address, count }) = match self {
            Self::Plug(blocks) => (0, blocks),
            Self::Unplug(blocks) => (1, blocks),
            Self::UnplugAll => (2, Blocks { address: 0, count: 0 }),
            Self::State(blocks) => (3, blocks),
            Self::Unknown => (0xFFFF, Blocks { address: 0, count: 0 }),
        };
        let mut bytes = [0; REQUEST_LEN];
        bytes[..2].copy_from_slice(&u16::to_le_bytes(kind));
        bytes[8..16].copy_from_slice(&address.to_le_bytes());
        bytes[16..18].copy_from_slice(&count.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_lie_as_the_specification_lays_them() {
        let mut bytes = [0xEE; REQUEST_LEN]; // padding may be anything
        bytes[8..16].copy_from_slice(&0x1_2345_6789_u64.to_le_bytes());
        bytes[16..18].copy_from_slice(&[0x34, 0x12]);
        let blocks = Blocks { address: 0x1_2345_6789, count: 0x1234 };
        for (kind, request) in [
            (0, Request::Plug(blocks)),
            (1, Request::Unplug(blocks)),
            (2, Request::UnplugAll),
            (3, Request::State(blocks)),
            (4, Request::Unknown),
            (0x100, Request::Unknown),
        ] {
            bytes[..2].copy_from_slice(&u16::to_le_bytes(kind));
            assert_eq!(Request::parse(&bytes), request);
        }
        for request in [Request::Plug(blocks), Request::Unplug(blocks), Request::UnplugAll, Request::State(blocks)] {
            assert_eq!(Request::parse(&request.bytes()), request);
        }
    }

    #[test]
    fn responses_and_configuration_have_the_specified_layout() {
        for (response, kind, state) in [
            (Response::Ack, 0, 0),
            (Response::Nack, 1, 0),
            (Response::Busy, 2, 0),
            (Response::Error, 3, 0),
            (Response::State(State::Plugged), 0, 0),
            (Response::State(State::Unplugged), 0, 1),
            (Response::State(State::Mixed), 0, 2),
        ] {
            let bytes = response.bytes();
            assert_eq!((bytes[0], bytes[8]), (kind, state), "{response:?}");
        }
        let config = Config {
            block_size: 1,
            address: 3,
            region_size: 4,
            usable_region_size: 5,
            plugged_size: 6,
            requested_size: 0x0102_0304_0506_0708,
        };
        let bytes = config.bytes();
        assert_eq!([0, 8, 16, 24, 32, 40].map(|at| bytes[at]), [1, 0, 3, 4, 5, 6]);
        assert_eq!(bytes[48..], [8, 7, 6, 5, 4, 3, 2, 1]);
    }
}
