//! Port and memory-mapped I/O: finds the device at an address.
//!
//! A bus does not change once the vCPUs run, so looking a device up takes no lock; a device that has state locks
//! itself.

use std::ops::Range;
use std::sync::Arc;

/// A device at a range of addresses. `offset` counts from the start of the range; `data` has 1 to 8 bytes and lies
/// wholly inside it.
pub(crate) trait BusDevice: Send + Sync {
    /// Fills all of `data`.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes `data`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// The ranges of two devices overlap.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("addresses {0:#x}..{1:#x} are taken already")]
pub(crate) struct Overlap(u64, u64);

struct Entry {
    range: Range<u64>,
    device: Arc<dyn BusDevice>,
}

/// Devices sorted by address.
#[derive(Default)]
pub(crate) struct Bus {
    entries: Vec<Entry>,
}

impl Bus {
    /// Puts `device` at `range`.
    pub(crate) fn add(&mut self, range: Range<u64>, device: Arc<dyn BusDevice>) -> Result<(), Overlap> {
        let at = self.entries.partition_point(|entry| entry.range.end <= range.start);
        if self.entries.get(at).is_some_and(|next| next.range.start < range.end) {
            return Err(Overlap(range.start, range.end));
        }
        self.entries.insert(at, Entry { range, device });
        Ok(())
    }

    /// Reads. An address without a device reads as all ones, as on a real bus. Returns whether a device answered.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) -> bool {
        match self.find(address, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => {
                data.fill(0xFF);
                return false;
            }
        }
        true
    }

    /// Writes. A write to an address without a device is dropped. Returns whether a device answered.
    pub(crate) fn write(&self, address: u64, data: &[u8]) -> bool {
        let Some((device, offset)) = self.find(address, data.len()) else { return false };
        device.write(offset, data);
        true
    }

    fn find(&self, address: u64, len: usize) -> Option<(&dyn BusDevice, u64)> {
        let at = self.entries.partition_point(|entry| entry.range.end <= address);
        let entry = self.entries.get(at)?;
        let inside = entry.range.start <= address && address.checked_add(len as u64)? <= entry.range.end;
        inside.then(|| (&*entry.device, address - entry.range.start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    struct Cell(Mutex<Vec<(u64, Vec<u8>)>>);
    impl BusDevice for Cell {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn cell() -> Arc<Cell> {
        Arc::new(Cell(Mutex::default()))
    }

    #[test]
    fn overlaps_are_refused() {
        let mut bus = Bus::default();
        bus.add(0x10..0x20, cell()).unwrap();
        bus.add(0x40..0x50, cell()).unwrap();
        for taken in [0x10..0x20, 0x00..0x11, 0x1F..0x21, 0x12..0x13, 0x00..0x60, 0x4F..0x51] {
            assert_eq!(bus.add(taken.clone(), cell()), Err(Overlap(taken.start, taken.end)));
        }
        bus.add(0x20..0x40, cell()).unwrap();
        bus.add(0x00..0x10, cell()).unwrap();
    }

    #[test]
    fn the_right_device_answers_and_no_device_reads_as_ones() {
        let mut bus = Bus::default();
        let (low, high) = (cell(), cell());
        bus.add(0x10..0x20, low.clone()).unwrap();
        bus.add(0x30..0x38, high.clone()).unwrap();
        for (address, len, answer) in [
            (0x10u64, 4usize, Some(0u8)),
            (0x1C, 4, Some(0xC)),
            (0x1D, 4, None), // it would reach beyond the device
            (0x0F, 1, None),
            (0x20, 1, None),
            (0x37, 1, Some(7)),
            (u64::MAX, 8, None),
        ] {
            let mut data = vec![0u8; len];
            assert_eq!(bus.read(address, &mut data), answer.is_some(), "{address:#x}");
            assert_eq!(data, vec![answer.unwrap_or(0xFF); len], "{address:#x}");
        }
        assert!(bus.write(0x31, &[7]));
        assert!(!bus.write(0x38, &[7]));
        assert_eq!(*high.0.lock().unwrap(), vec![(1, vec![7])]);
        assert!(low.0.lock().unwrap().is_empty());
    }
}
