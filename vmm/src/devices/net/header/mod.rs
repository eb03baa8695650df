//! The header before every packet (§5.1.6), checked before the host's network stack uses it. Pure.

#[cfg(test)]
mod tests;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Its length, with and without merged buffers (§5.1.6.1).
pub(super) const HEADER: usize = 12;
/// The offset of `num_buffers`.
pub(super) const NUM_BUFFERS: usize = 10;
/// An Ethernet header with a VLAN tag.
const ETHERNET: usize = 18;
/// The shortest Ethernet header.
const ETHERNET_MIN: usize = 14;
/// The smallest segment size that a TCP sender uses: the smallest MSS, 48 bytes, less 40 bytes of options. A smaller
/// size would only make the host divide one packet into tens of thousands.
const SEGMENT_MIN: u16 = 8;
/// The largest packet with its header: the largest input of segmentation offload.
pub(super) const PACKET_MAX: usize = HEADER + ETHERNET + 65536;

/// The header, in the guest's byte order, which is the TAP's: both are little-endian.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    pub flags: u8,
    pub gso_type: u8,
    pub hdr_len: U16,
    pub gso_size: U16,
    pub csum_start: U16,
    pub csum_offset: U16,
    pub num_buffers: U16,
}

/// The header that the host gets for a packet of `length` bytes, header included. `None` if the packet must be dropped:
/// it is not a packet, or it requests an offload that was not negotiated or that points outside it. A packet without
/// segmentation may have `mtu` bytes: the host would divide a larger one into fragments after the filter that counts
/// fragments.
pub(super) fn admit(header: Header, length: usize, features: u64, mtu: u16) -> Option<Header> {
    if !(HEADER + ETHERNET_MIN..=PACKET_MAX).contains(&length) {
        return None;
    }
    let frame = length - HEADER;
    let has = |bit: u32| features & (1 << bit) != 0;
    let checksum = u32::from(header.flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
    if checksum {
        let field = usize::from(header.csum_start.get()) + usize::from(header.csum_offset.get());
        if !has(VIRTIO_NET_F_CSUM) || field + 2 > frame {
            return None;
        }
    }
    let segments = match u32::from(header.gso_type) {
        VIRTIO_NET_HDR_GSO_NONE => false,
        VIRTIO_NET_HDR_GSO_TCPV4 if has(VIRTIO_NET_F_HOST_TSO4) => true,
        VIRTIO_NET_HDR_GSO_TCPV6 if has(VIRTIO_NET_F_HOST_TSO6) => true,
        _ => return None,
    };
    if !segments && frame > ETHERNET + usize::from(mtu) {
        return None;
    }
    // §5.1.6.2: segmentation needs the checksum and a segment size.
    if segments && (!checksum || header.gso_size.get() < SEGMENT_MIN || usize::from(header.hdr_len.get()) > frame) {
        return None;
    }
    let flags = if checksum { VIRTIO_NET_HDR_F_NEEDS_CSUM as u8 } else { 0 };
    let plain = Header::default();
    Some(match (checksum, segments) {
        (false, _) => plain,
        (true, false) => Header { flags, csum_start: header.csum_start, csum_offset: header.csum_offset, ..plain },
        (true, true) => Header { flags, num_buffers: 0.into(), ..header },
    })
}

/// The work that the TAP may leave to the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offloads {
    /// Checksums not filled in.
    pub checksum: bool,
    /// TCP over IPv4 not divided into segments.
    pub tso4: bool,
    /// The same over IPv6.
    pub tso6: bool,
}

impl Offloads {
    /// The offloads that the driver accepted. The kernel rejects segmentation without checksums, so it is not requested
    /// then.
    pub(super) fn accepted(features: u64) -> Self {
        let has = |bit: u32| features & (1 << bit) != 0;
        let checksum = has(VIRTIO_NET_F_GUEST_CSUM);
        Self {
            checksum,
            tso4: checksum && has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: checksum && has(VIRTIO_NET_F_GUEST_TSO6),
        }
    }

    /// The largest packet, header included, that may come from a TAP with this MTU.
    pub(super) fn packet_max(&self, mtu: u16) -> usize {
        if self.tso4 || self.tso6 { PACKET_MAX } else { HEADER + ETHERNET + usize::from(mtu) }
    }
}
