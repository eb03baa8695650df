//! Checks the requests of a virtio-blk driver (§5.2.6) before they are carried out. Pure: bytes in, an [`Action`] or a
//! status out.

#[cfg(test)]
mod tests;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The unit of all sector numbers, regardless of the block size (§5.2.4).
pub(super) const SECTOR: u64 = 512;
/// The largest range of one discard or write-zeroes request, in sectors: 2 GiB.
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 22;
/// The most data segments in one request. With the header and the status they fill a chain of [`super::QUEUE_SIZE`]
/// descriptors.
pub(super) const SEG_MAX: u32 = super::QUEUE_SIZE as u32 - 2;
/// The largest segment, in bytes.
pub(super) const SIZE_MAX: u32 = 256 << 10;
/// The most data one request carries, in bytes.
pub(super) const MAX_DATA: u64 = SEG_MAX as u64 * SIZE_MAX as u64;
/// Bytes of the serial number (§5.2.6, `VIRTIO_BLK_T_GET_ID`).
pub(super) const ID_LEN: usize = 20;

/// The first bytes of every request.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    /// `VIRTIO_BLK_T_*`.
    pub kind: U32,
    /// Unused.
    pub reserved: U32,
    /// The first sector of a read or write.
    pub sector: U64,
}

/// The data after the header of a discard or write-zeroes request.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Range {
    /// The first sector.
    pub sector: U64,
    pub sectors: U32,
    /// `VIRTIO_BLK_WRITE_ZEROES_FLAG_*`.
    pub flags: U32,
}

/// The disk's capabilities.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disk {
    /// Its size in sectors.
    pub sectors: u64,
    /// Whether writes are rejected.
    pub read_only: bool,
    /// Whether the host's file system can punch holes, so that discard and write-zeroes are offered.
    pub discard: bool,
}

/// An admitted request: every range lies inside the disk. Offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Fill the writable buffers.
    Read { offset: u64, len: u64 },
    /// Store the readable buffers.
    Write { offset: u64, len: u64 },
    /// Make every acknowledged write durable.
    Flush,
    /// Return the serial number.
    Identify,
    /// Free the space; the range reads as zeroes afterwards.
    Punch { offset: u64, len: u64 },
    /// Zero the range, and keep the space.
    Zero { offset: u64, len: u64 },
}

impl Action {
    /// Whether it changes the disk's contents.
    pub(super) fn writes(&self) -> bool {
        matches!(self, Action::Write { .. } | Action::Punch { .. } | Action::Zero { .. })
    }

    /// The bytes that count toward a rate limit.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Action::Read { len, .. } | Action::Write { len, .. } => *len,
            _ => 0,
        }
    }
}

/// The last byte of every request, written by the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    /// Success.
    Ok = virtio_bindings::virtio_blk::VIRTIO_BLK_S_OK as u8,
    /// The request failed or is not allowed.
    IoError = virtio_bindings::virtio_blk::VIRTIO_BLK_S_IOERR as u8,
    /// The device does not know this request.
    Unsupported = virtio_bindings::virtio_blk::VIRTIO_BLK_S_UNSUPP as u8,
}

/// The contents of a chain besides header and status.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Readable bytes after the header.
    pub readable: u64,
    /// Writable bytes before the status.
    pub writable: u64,
    /// The readable bytes themselves, if they are exactly one range.
    pub range: Option<Range>,
}

/// Checks a request.
pub(super) fn validate(header: Header, shape: Shape, disk: Disk) -> Result<Action, Status> {
    match header.kind.get() {
        VIRTIO_BLK_T_IN => {
            let (offset, len) = extent(header.sector.get(), shape.writable, disk)?;
            Ok(Action::Read { offset, len })
        }
        VIRTIO_BLK_T_OUT => {
            writable(disk)?;
            let (offset, len) = extent(header.sector.get(), shape.readable, disk)?;
            Ok(Action::Write { offset, len })
        }
        VIRTIO_BLK_T_FLUSH => Ok(Action::Flush),
        VIRTIO_BLK_T_GET_ID if shape.writable >= ID_LEN as u64 => Ok(Action::Identify),
        VIRTIO_BLK_T_GET_ID => Err(Status::IoError),
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if !disk.discard => Err(Status::Unsupported),
        kind @ (VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES) => {
            writable(disk)?;
            // The device offers only one range per request.
            validate_range(kind, shape.range.ok_or(Status::IoError)?, disk)
        }
        _ => Err(Status::Unsupported),
    }
}

fn validate_range(kind: u32, range: Range, disk: Disk) -> Result<Action, Status> {
    let unmap = range.flags.get() & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
    let unknown = range.flags.get() & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
    // §5.2.6.2: unknown flags are unsupported, and so is "unmap" in a discard.
    if unknown || (unmap && kind == VIRTIO_BLK_T_DISCARD) {
        return Err(Status::Unsupported);
    }
    if range.sectors.get() > MAX_RANGE_SECTORS || range.sectors.get() == 0 {
        return Err(Status::IoError);
    }
    let (offset, len) = inside(range.sector.get(), u64::from(range.sectors.get()), disk)?;
    match kind {
        VIRTIO_BLK_T_WRITE_ZEROES if !unmap => Ok(Action::Zero { offset, len }),
        _ => Ok(Action::Punch { offset, len }),
    }
}

fn writable(disk: Disk) -> Result<(), Status> {
    if disk.read_only { Err(Status::IoError) } else { Ok(()) }
}

fn extent(sector: u64, bytes: u64, disk: Disk) -> Result<(u64, u64), Status> {
    if !bytes.is_multiple_of(SECTOR) || bytes > MAX_DATA {
        return Err(Status::IoError);
    }
    inside(sector, bytes / SECTOR, disk)
}

fn inside(sector: u64, sectors: u64, disk: Disk) -> Result<(u64, u64), Status> {
    match sector.checked_add(sectors) {
        // The disk's size in bytes is the length of a file, so no smaller value overflows.
        Some(end) if end <= disk.sectors => Ok((sector * SECTOR, sectors * SECTOR)),
        _ => Err(Status::IoError),
    }
}
