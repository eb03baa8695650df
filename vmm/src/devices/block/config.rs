//! A disk's configuration space (§5.2.4). Only `writeback` can be written.

use std::sync::atomic::{AtomicBool, Ordering};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::request::{Disk, MAX_RANGE_SECTORS, SEG_MAX, SIZE_MAX};
use crate::virtio::{ConfigBytes, ConfigSpace};

/// The offset of `writeback`.
const WRITEBACK: u64 = 32;
/// The physical block of the host's file systems: 4 KiB, as a number of sectors and as its logarithm.
const PHYSICAL_BLOCK: u16 = 8;
const PHYSICAL_BLOCK_EXP: u8 = 3;

#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct Layout {
    capacity: U64,
    size_max: U32,
    seg_max: U32,
    geometry: [u8; 4],
    blk_size: U32,
    physical_block_exp: u8,
    alignment_offset: u8,
    min_io_size: U16,
    opt_io_size: U32,
    writeback: u8,
    unused0: u8,
    num_queues: U16,
    max_discard_sectors: U32,
    max_discard_seg: U32,
    discard_sector_alignment: U32,
    max_write_zeroes_sectors: U32,
    max_write_zeroes_seg: U32,
    write_zeroes_may_unmap: u8,
    unused1: [u8; 3],
}

/// The configuration space, shared by the vCPU threads and the worker.
pub(super) struct BlockConfig {
    fixed: ConfigBytes,
    /// Not reset with the device, because a driver that negotiates `CONFIG_WCE` reads it first.
    writeback: AtomicBool,
}

impl BlockConfig {
    pub(super) fn new(disk: Disk) -> Self {
        let layout = Layout {
            capacity: disk.sectors.into(),
            size_max: SIZE_MAX.into(),
            seg_max: SEG_MAX.into(),
            blk_size: 512.into(),
            physical_block_exp: PHYSICAL_BLOCK_EXP,
            min_io_size: PHYSICAL_BLOCK.into(),
            num_queues: 1.into(),
            max_discard_sectors: MAX_RANGE_SECTORS.into(),
            max_discard_seg: 1.into(),
            discard_sector_alignment: u32::from(PHYSICAL_BLOCK).into(),
            max_write_zeroes_sectors: MAX_RANGE_SECTORS.into(),
            max_write_zeroes_seg: 1.into(),
            write_zeroes_may_unmap: 1,
            ..Layout::default()
        };
        Self { fixed: ConfigBytes(layout.as_bytes().to_vec()), writeback: AtomicBool::new(true) }
    }

    /// Whether writes may be acknowledged before they are durable.
    pub(super) fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Acquire)
    }
}

impl ConfigSpace for BlockConfig {
    fn read(&self, at: u64, out: &mut [u8]) {
        self.fixed.read(at, out);
        if let Some(byte) = WRITEBACK.checked_sub(at).and_then(|index| out.get_mut(usize::try_from(index).ok()?)) {
            *byte = self.writeback().into();
        }
    }

    fn write(&self, at: u64, data: &[u8]) {
        if let (WRITEBACK, [value]) = (at, data) {
            self.writeback.store(*value != 0, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> BlockConfig {
        BlockConfig::new(Disk { sectors: 0x1122_3344_5566, read_only: false, discard: true })
    }

    #[test]
    fn fields_lie_where_the_specification_says() {
        let mut bytes = [0xFF; 64];
        config().read(0, &mut bytes[..60]);
        assert_eq!(size_of::<Layout>(), 60);
        assert_eq!(bytes[..8], 0x1122_3344_5566_u64.to_le_bytes());
        assert_eq!(bytes[12..16], SEG_MAX.to_le_bytes());
        assert_eq!(bytes[20..24], 512_u32.to_le_bytes());
        assert_eq!((bytes[24], bytes[32], bytes[56]), (3, 1, 1));
        assert_eq!(bytes[36..40], MAX_RANGE_SECTORS.to_le_bytes());
    }

    #[test]
    fn only_writeback_can_be_written() {
        let config = config();
        for at in 0..80 {
            config.write(at, &[0, 0]);
            config.write(at, &[0, 0, 0, 0]);
        }
        config.write(31, &[0]);
        assert!(config.writeback());
        config.write(32, &[0]);
        assert!(!config.writeback());
        let mut byte = [9];
        config.read(32, &mut byte);
        assert_eq!(byte, [0]);
        config.write(32, &[7]);
        config.read(32, &mut byte);
        assert_eq!(byte, [1]);
        config.read(u64::MAX, &mut byte);
    }
}
