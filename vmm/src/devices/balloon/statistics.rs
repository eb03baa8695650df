//! The guest's memory statistics (§5.5.6.4). Pure. The guest may report anything, and nothing is derived from the
//! values here.

use garret_api::vmm::GuestMemory;

/// One entry: a 16-bit tag and a 64-bit value, packed.
const ENTRY: usize = 10;
/// The most bytes that are read; Linux sends up to 16 entries.
pub(super) const STATISTICS_MAX: usize = 64 * ENTRY;

/// Parses the entries in `bytes`. Unknown tags and a trailing part of an entry are ignored; the last of equal tags
/// counts.
pub(super) fn parse(bytes: &[u8]) -> GuestMemory {
    let mut memory = GuestMemory::default();
    for entry in bytes.chunks_exact(ENTRY) {
        let (tag, value) = entry.split_at(2);
        let value = value.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        if let Some(field) = field(&mut memory, u16::from_le_bytes([tag[0], tag[1]])) {
            *field = Some(value);
        }
    }
    memory
}

/// The field of a tag, `VIRTIO_BALLOON_S_*`.
fn field(memory: &mut GuestMemory, tag: u16) -> Option<&mut Option<u64>> {
    match tag {
        0 => Some(&mut memory.swap_in),
        1 => Some(&mut memory.swap_out),
        2 => Some(&mut memory.major_faults),
        3 => Some(&mut memory.minor_faults),
        4 => Some(&mut memory.free),
        5 => Some(&mut memory.total),
        6 => Some(&mut memory.available),
        7 => Some(&mut memory.disk_caches),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(tag: u16, value: u64) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
    }

    #[test]
    fn every_tag_has_its_field() {
        let bytes: Vec<u8> = (0..8).flat_map(|tag| entry(tag, 100 + u64::from(tag))).collect();
        let expected = GuestMemory {
            swap_in: Some(100),
            swap_out: Some(101),
            major_faults: Some(102),
            minor_faults: Some(103),
            free: Some(104),
            total: Some(105),
            available: Some(106),
            disk_caches: Some(107),
        };
        assert_eq!(parse(&bytes), expected);
    }

    #[test]
    fn what_is_not_reported_is_absent() {
        let bytes = [entry(5, 1 << 40), entry(15, 1), entry(u16::MAX, 2), entry(5, u64::MAX)].concat();
        assert_eq!(parse(&bytes), GuestMemory { total: Some(u64::MAX), ..GuestMemory::default() });
        assert_eq!(parse(&bytes[..9]), GuestMemory::default());
        assert_eq!(parse(&[]), GuestMemory::default());
    }

    proptest! {
        #[test]
        fn any_bytes_are_statistics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let memory = parse(&bytes);
            // A field is present exactly if one of the entries has its tag.
            let names_free = bytes.chunks_exact(10).any(|entry| entry[..2] == [4, 0]);
            prop_assert_eq!(memory.free.is_some(), names_free);
        }
    }
}
