//! A position in a chain's bytes, whatever the layout of its descriptors (§2.7.4.3: a device must not assume a layout).

use std::io;

use vm_memory::{Address, GuestMemory, VolatileSlice};

use super::{ChainFault, Fault, GuestRam, Segment};

/// A window into a chain's readable or writable bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'c> {
    mem: &'c GuestRam,
    head: u16,
    segments: &'c [Segment],
    /// Bytes of the first segment that are before the window.
    skip: u32,
    /// Bytes in the window.
    left: u32,
}

impl<'c> Cursor<'c> {
    /// A window of `len` bytes, from the beginning of `segments`.
    pub(super) fn new(mem: &'c GuestRam, head: u16, segments: &'c [Segment], len: u32) -> Self {
        Self { mem, head, segments, skip: 0, left: len }
    }

    /// Bytes in the window.
    pub(super) fn left(&self) -> u32 {
        self.left
    }

    /// The contiguous bytes at the window's front.
    pub(super) fn front(&self) -> Option<Segment> {
        let first = self.segments.first()?;
        let len = (first.len - self.skip).min(self.left);
        (len > 0).then(|| Segment { addr: first.addr.unchecked_add(u64::from(self.skip)), len })
    }

    pub(super) fn advance(&mut self, count: u32) {
        self.left -= count;
        let mut count = u64::from(self.skip) + u64::from(count);
        while let Some(first) = self.segments.first() {
            if count < u64::from(first.len) {
                break;
            }
            count -= u64::from(first.len);
            self.segments = &self.segments[1..];
        }
        // Less than the first segment's length, or 0 at the end.
        self.skip = count as u32;
    }

    pub(super) fn checked(&self, count: usize) -> Result<u32, Fault> {
        match u32::try_from(count) {
            Ok(count) if count <= self.left => Ok(count),
            _ => Err(Fault::Chain { head: self.head, why: ChainFault::TooShort }),
        }
    }

    pub(super) fn split_at(self, at: usize) -> Result<(Self, Self), Fault> {
        let at = self.checked(at)?;
        let mut rest = self;
        rest.advance(at);
        Ok((Self { left: at, ..self }, rest))
    }

    pub(super) fn pieces(mut self) -> impl Iterator<Item = Segment> + 'c {
        std::iter::from_fn(move || {
            let piece = self.front()?;
            self.advance(piece.len);
            Some(piece)
        })
    }

    pub(super) fn slice(&self, piece: Segment) -> io::Result<VolatileSlice<'c, super::Bitmap>> {
        self.mem.get_slice(piece.addr, piece.len as usize).map_err(io::Error::other)
    }
}
