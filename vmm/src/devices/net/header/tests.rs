use super::*;
use proptest::prelude::*;

const ALL: u64 = 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4 | 1 << VIRTIO_NET_F_HOST_TSO6;

fn header(flags: u8, gso_type: u8, gso_size: u16, csum_start: u16, csum_offset: u16) -> Header {
    Header {
        flags,
        gso_type,
        hdr_len: 54.into(),
        gso_size: gso_size.into(),
        csum_start: csum_start.into(),
        csum_offset: csum_offset.into(),
        num_buffers: 9.into(),
    }
}

#[test]
fn only_what_was_negotiated_and_lies_inside() {
    let plain = header(0, 0, 0, 0, 0);
    let checksum = header(1, 0, 0, 34, 16);
    let segments = header(1, 1, 1448, 34, 16);
    for (header, length, features, admitted) in [
        (plain, HEADER + 60, 0, true),
        (plain, HEADER + 13, ALL, false),
        (plain, HEADER + ETHERNET + 1500, ALL, true),
        (plain, HEADER + ETHERNET + 1501, ALL, false),
        (checksum, HEADER + ETHERNET + 1501, ALL, false),
        (segments, PACKET_MAX, ALL, true),
        (segments, PACKET_MAX + 1, ALL, false),
        (plain, 0, ALL, false),
        (checksum, HEADER + 52, ALL, true),
        (checksum, HEADER + 51, ALL, false),
        (checksum, HEADER + 60, 0, false),
        (segments, HEADER + 3000, ALL, true),
        (segments, HEADER + 3000, 1 << VIRTIO_NET_F_CSUM, false),
        (header_with(segments, |h| h.gso_size = 0.into()), HEADER + 3000, ALL, false),
        (header_with(segments, |h| h.gso_size = 7.into()), HEADER + 3000, ALL, false),
        (header_with(segments, |h| h.flags = 0), HEADER + 3000, ALL, false),
        (header_with(segments, |h| h.hdr_len = u16::MAX.into()), HEADER + 3000, ALL, false),
        (header_with(segments, |h| h.gso_type = 3), HEADER + 3000, ALL, false),
        (header_with(segments, |h| h.gso_type = 5), HEADER + 3000, ALL, false),
        (header_with(segments, |h| h.gso_type = 0x81), HEADER + 3000, ALL, false),
        (header_with(segments, |h| h.csum_start = u16::MAX.into()), PACKET_MAX - 2, ALL, false),
    ] {
        assert_eq!(admit(header, length, features, 1500).is_some(), admitted, "{header:?} {length}");
    }
}

fn header_with(mut header: Header, change: impl FnOnce(&mut Header)) -> Header {
    change(&mut header);
    header
}

#[test]
fn the_guest_gets_only_offloads_it_accepted() {
    let csum = 1 << VIRTIO_NET_F_GUEST_CSUM;
    let tso4 = 1 << VIRTIO_NET_F_GUEST_TSO4;
    assert_eq!(Offloads::accepted(tso4), Offloads::default());
    assert_eq!(Offloads::accepted(csum | tso4), Offloads { checksum: true, tso4: true, tso6: false });
    assert_eq!(Offloads::accepted(csum).packet_max(1500), 12 + 18 + 1500);
    assert_eq!(Offloads::accepted(csum | tso4).packet_max(1500), PACKET_MAX);
}

proptest! {
    /// A packet for the host never points outside itself and requests only what was negotiated.
    #[test]
    fn an_admitted_header_is_valid(bytes in any::<[u8; 12]>(), length in 0..70_000_usize, features in any::<u64>()) {
        let header = Header::read_from_bytes(&bytes).unwrap();
        if let Some(admitted) = admit(header, length, features, 1500) {
            let frame = length - HEADER;
            prop_assert!(admitted.gso_type != 0 || frame <= ETHERNET + 1500);
            let checksum = admitted.flags == 1;
            prop_assert!(admitted.flags <= 1);
            prop_assert!(!checksum || features & 1 << VIRTIO_NET_F_CSUM != 0);
            let field = usize::from(admitted.csum_start.get()) + usize::from(admitted.csum_offset.get());
            prop_assert!(!checksum || field + 2 <= frame);
            prop_assert!(matches!(admitted.gso_type, 0 | 1 | 4));
            prop_assert!(admitted.gso_type == 0 || (checksum && admitted.gso_size.get() >= SEGMENT_MIN));
            prop_assert!(usize::from(admitted.hdr_len.get()) <= frame);
            prop_assert_eq!(admitted.num_buffers.get(), 0);
        }
    }
}
