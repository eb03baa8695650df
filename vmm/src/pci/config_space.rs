//! The configuration space of one function: a type 0 header and its capabilities (PCI Local Bus 3.0, §6.1, §6.7).
//!
//! Linux tries each BAR while it scans, and each write is an exit: so one BAR, no expansion ROM, no
//! wired interrupt, no power management, no PCI Express, and only the capabilities a driver needs.

/// Bytes of a configuration space.
pub(super) const SIZE: usize = 256;

const COMMAND: usize = 0x04;
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Memory space, bus master, interrupt disable.
const COMMAND_WRITABLE: u16 = 1 << 1 | 1 << 2 | 1 << 10;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;

/// The identification of a function.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ids {
    pub vendor: u16,
    pub device: u16,
    pub revision: u8,
    /// Class, subclass and programming interface: 24 bits.
    pub class: u32,
}

/// The bytes of a configuration space, and the bits that the guest may change.
pub(super) struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    last_capability: usize,
    free: usize,
}

impl ConfigSpace {
    /// A function with one 32-bit memory BAR at `bar`, of `bar_size` bytes (a power of two).
    ///
    /// The BAR's address is fixed. The guest may write it to find out its size; a written address has no effect.
    pub(super) fn new(ids: Ids, bar: u32, bar_size: u32) -> Self {
        let mut space =
            Self { bytes: [0; SIZE], writable: [0; SIZE], last_capability: CAPABILITIES, free: FIRST_CAPABILITY };
        space.put(0x00, &ids.vendor.to_le_bytes());
        space.put(0x02, &ids.device.to_le_bytes());
        space.put(0x06, &STATUS_CAPABILITIES.to_le_bytes());
        space.put(0x08, &(ids.class << 8 | u32::from(ids.revision)).to_le_bytes());
        space.put(BAR0, &bar.to_le_bytes());
        space.put(0x2C, &ids.vendor.to_le_bytes());
        space.put(0x2E, &ids.device.to_le_bytes());
        space.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        space.allow(BAR0, &(!(bar_size - 1)).to_le_bytes());
        space
    }

    /// Adds a capability; `body` holds the bytes after its id and its link. Returns its offset.
    pub(super) fn add_capability(&mut self, id: u8, body: &[u8]) -> usize {
        let at = self.free;
        // The link of the previous capability (or the header's pointer) points here; the link of this one ends the
        // list.
        let link = if self.last_capability == CAPABILITIES { CAPABILITIES } else { self.last_capability + 1 };
        self.bytes[link] = at as u8;
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.last_capability = at;
        self.free = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Lets the guest change the bits of `mask` at `at`.
    pub(super) fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    pub(super) fn bytes(&self) -> &[u8; SIZE] {
        &self.bytes
    }

    /// Reads; bytes beyond the end are zero, because there are no extended capabilities.
    pub(super) fn read(&self, at: usize, data: &mut [u8]) {
        match self.bytes.get(at..at + data.len()) {
            Some(bytes) => data.copy_from_slice(bytes),
            None => data.fill(0),
        }
    }

    /// Writes the bits the guest may change.
    pub(super) fn write(&mut self, at: usize, data: &[u8]) {
        for (at, new) in (at..SIZE).zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | new & mask;
        }
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let ids = Ids { vendor: 0x1AF4, device: 0x1042, revision: 1, class: 0x01_80_00 };
        ConfigSpace::new(ids, 0xC000_4000, 0x4000)
    }

    fn long(space: &ConfigSpace, at: usize) -> u32 {
        let mut data = [0; 4];
        space.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_bar_tells_its_size_and_takes_its_address_back() {
        let mut space = space();
        let before = long(&space, BAR0);
        space.write(BAR0, &[0xFF; 4]);
        assert_eq!(!long(&space, BAR0) + 1, 0x4000);
        space.write(BAR0, &before.to_le_bytes());
        assert_eq!(long(&space, BAR0), 0xC000_4000);
        for unused in [0x14, 0x18, 0x1C, 0x20, 0x24, 0x30] {
            space.write(unused, &[0xFF; 4]);
            assert_eq!(long(&space, unused), 0);
        }
    }

    #[test]
    fn capabilities_form_a_list_that_ends() {
        let mut space = space();
        let places =
            [(0x11, 10), (0x09, 14), (0x09, 18)].map(|(id, len)| (space.add_capability(id, &vec![7; len]), id));
        let mut at = space.bytes[CAPABILITIES] as usize;
        for (place, id) in places {
            assert_eq!((at, space.bytes[at]), (place, id));
            assert_eq!(at % 4, 0);
            at = space.bytes[at + 1] as usize;
        }
        assert_eq!(at, 0);
    }

    #[test]
    fn identity_is_read_only_and_reads_never_leave_the_space() {
        let mut space = space();
        let before = space.bytes;
        for at in (0..SIZE).filter(|at| !(COMMAND..COMMAND + 2).contains(at) && !(BAR0..BAR0 + 4).contains(at)) {
            space.write(at, &[0xFF]);
        }
        space.write(SIZE - 1, &[0; 4]);
        space.write(SIZE + 7, &[0; 4]);
        assert_eq!(space.bytes, before);
        assert_eq!(long(&space, SIZE - 2), 0);
    }
}
