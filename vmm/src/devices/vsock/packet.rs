//! The packet header and its valid values: virtio 1.2 §5.10.6.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The host's context id (`VMADDR_CID_HOST`).
pub(super) const HOST_CID: u64 = 2;
/// The largest payload either side puts in one packet, in bytes.
pub(super) const MAX_PAYLOAD: u32 = 64 << 10;
/// The bytes of a header on the ring.
pub(super) const HEADER_LEN: usize = size_of::<Header>();

const TYPE_STREAM: u16 = 1;

/// Bit of [`Header::flags`] in a `Shutdown`: the sender will receive no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// Bit of [`Header::flags`] in a `Shutdown`: the sender will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both directions.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// `struct virtio_vsock_hdr` in guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    /// The sender's context id.
    pub src_cid: U64,
    /// The receiver's context id.
    pub dst_cid: U64,
    /// The sender's port.
    pub src_port: U32,
    /// The receiver's port.
    pub dst_port: U32,
    /// Bytes of payload that follow.
    pub len: U32,
    /// 1 for a stream, the only type offered.
    pub kind: U16,
    /// See [`Op`].
    pub op: U16,
    /// Only used by `Shutdown`.
    pub flags: U32,
    /// The sender's receive buffer, in bytes.
    pub buf_alloc: U32,
    /// The number of bytes that the sender's application has taken, modulo 2³².
    pub fwd_cnt: U32,
}

/// The operation of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Op {
    /// Open a connection.
    Request,
    /// The connection is open.
    Response,
    /// There is no such connection (any more).
    Reset,
    /// The sender will receive or send no more.
    Shutdown,
    /// Payload.
    Data,
    /// A packet for its credit fields only.
    CreditUpdate,
    /// A request for a `CreditUpdate`.
    CreditRequest,
}

impl Op {
    const ALL: [(u16, Op); 7] = [
        (1, Op::Request),
        (2, Op::Response),
        (3, Op::Reset),
        (4, Op::Shutdown),
        (5, Op::Data),
        (6, Op::CreditUpdate),
        (7, Op::CreditRequest),
    ];

    fn parse(raw: u16) -> Option<Op> {
        Self::ALL.iter().find(|(number, _)| *number == raw).map(|(_, op)| *op)
    }

    /// The operation's number in the packet.
    pub(super) fn number(self) -> u16 {
        Self::ALL.iter().find(|(_, op)| *op == self).map_or(0, |(number, _)| *number)
    }
}

/// The two ends of a connection; the context ids are always the guest's and the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    /// The port inside the guest.
    pub guest_port: u32,
    /// The port on the host's side.
    pub host_port: u32,
}

/// What to do with a packet from the guest, according to its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Pass it to this connection.
    Take(Key, Op),
    /// Answer with a reset.
    Refuse(Key),
    /// Send no answer: the packet is a reset, or does not come from the guest's own address.
    Ignore,
}

/// Checks a header that the guest wrote.
pub(super) fn classify(header: &Header, guest_cid: u64) -> Verdict {
    let key = Key { guest_port: header.src_port.get(), host_port: header.dst_port.get() };
    if header.src_cid.get() != guest_cid {
        return Verdict::Ignore;
    }
    let op = Op::parse(header.op.get());
    let ours = header.dst_cid.get() == HOST_CID && header.kind.get() == TYPE_STREAM;
    match op {
        Some(op) if ours => Verdict::Take(key, op),
        // A reset is never answered with a reset, or two sides could exchange resets forever.
        Some(Op::Reset) => Verdict::Ignore,
        _ => Verdict::Refuse(key),
    }
}

/// The header of a packet to the guest.
pub(super) fn header(key: Key, guest_cid: u64, op: Op, len: u32) -> Header {
    Header {
        src_cid: HOST_CID.into(),
        dst_cid: guest_cid.into(),
        src_port: key.host_port.into(),
        dst_port: key.guest_port.into(),
        len: len.into(),
        kind: TYPE_STREAM.into(),
        op: op.number().into(),
        ..Header::default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GUEST: u64 = 3;

    fn from_guest(op: u16) -> Header {
        Header {
            src_cid: GUEST.into(),
            dst_cid: HOST_CID.into(),
            src_port: 5.into(),
            dst_port: 6.into(),
            kind: TYPE_STREAM.into(),
            op: op.into(),
            ..Header::default()
        }
    }

    #[test]
    fn the_header_has_the_specified_layout() {
        let bytes: Vec<u8> = (0..HEADER_LEN as u8).collect();
        let header = Header::read_from_bytes(&bytes).unwrap();
        assert_eq!(HEADER_LEN, 44);
        assert_eq!(header.src_cid.get(), 0x0706050403020100);
        assert_eq!(header.dst_port.get(), 0x17161514);
        assert_eq!(header.kind.get(), 0x1d1c);
        assert_eq!(header.op.get(), 0x1f1e);
        assert_eq!(header.flags.get(), 0x23222120);
        assert_eq!(header.fwd_cnt.get(), 0x2b2a2928);
    }

    #[test]
    fn every_operation_has_one_number() {
        let key = Key { guest_port: 5, host_port: 6 };
        for (number, op) in Op::ALL {
            assert_eq!(op.number(), number);
            assert_eq!(classify(&from_guest(number), GUEST), Verdict::Take(key, op));
        }
        for unknown in [0, 8, u16::MAX] {
            assert_eq!(classify(&from_guest(unknown), GUEST), Verdict::Refuse(key));
        }
    }

    #[test]
    fn foreign_addresses_and_types_are_not_taken() {
        let key = Key { guest_port: 5, host_port: 6 };
        let sender = Header { src_cid: 4.into(), ..from_guest(1) };
        assert_eq!(classify(&sender, GUEST), Verdict::Ignore);
        let receiver = Header { dst_cid: 7.into(), ..from_guest(1) };
        assert_eq!(classify(&receiver, GUEST), Verdict::Refuse(key));
        let datagram = Header { kind: 2.into(), ..from_guest(1) };
        assert_eq!(classify(&datagram, GUEST), Verdict::Refuse(key));
        let reset = Header { dst_cid: 7.into(), ..from_guest(3) };
        assert_eq!(classify(&reset, GUEST), Verdict::Ignore);
    }

    proptest! {
        #[test]
        fn a_parsed_packet_is_a_stream_between_guest_and_host(bytes in prop::array::uniform32(any::<u8>()), tail in prop::array::uniform12(any::<u8>())) {
            let raw = [&bytes[..], &tail[..]].concat();
            let header = Header::read_from_bytes(&raw).unwrap();
            if let Verdict::Take(key, op) = classify(&header, GUEST) {
                prop_assert_eq!(header.src_cid.get(), GUEST);
                prop_assert_eq!(header.dst_cid.get(), HOST_CID);
                prop_assert_eq!(header.kind.get(), TYPE_STREAM);
                prop_assert_eq!(key.guest_port, header.src_port.get());
                prop_assert_eq!(op.number(), header.op.get());
            }
        }
    }
}
