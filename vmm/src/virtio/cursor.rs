//! Reads and writes a chain's bytes, whatever the layout of its descriptors (§2.7.4.3: a device must not assume a
//! layout).

use std::io;

use vm_memory::{Address, ByteValued, Bytes, GuestMemory, VolatileSlice};

use super::{Chain, ChainFault, Fault, GuestRam, Segment, iov};

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
    /// The contiguous bytes at the window's front.
    fn front(&self) -> Option<Segment> {
        let first = self.segments.first()?;
        let len = (first.len - self.skip).min(self.left);
        (len > 0).then(|| Segment { addr: first.addr.unchecked_add(u64::from(self.skip)), len })
    }

    fn advance(&mut self, count: u32) {
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

    fn checked(&self, count: usize) -> Result<u32, Fault> {
        match u32::try_from(count) {
            Ok(count) if count <= self.left => Ok(count),
            _ => Err(Fault::Chain { head: self.head, why: ChainFault::TooShort }),
        }
    }

    fn split_at(self, at: usize) -> Result<(Self, Self), Fault> {
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

/// Reads the bytes a driver sent. Cloning gives a second, independent position.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'c> {
    cursor: Cursor<'c>,
}

impl<'c> Reader<'c> {
    pub(super) fn new(chain: &'c Chain) -> Self {
        let (segments, left) = (chain.readable(), chain.readable_len());
        Self { cursor: Cursor { mem: chain.mem(), head: chain.head(), segments, skip: 0, left } }
    }

    /// Bytes not yet read.
    pub(crate) fn remaining(&self) -> usize {
        self.cursor.left as usize
    }

    /// Reads one plain value; [`ChainFault::TooShort`] when there are not enough bytes.
    pub(crate) fn read_obj<T: ByteValued>(&mut self) -> Result<T, Fault> {
        self.cursor.checked(size_of::<T>())?;
        let mut value = T::zeroed();
        io::Read::read_exact(self, value.as_mut_slice())?;
        Ok(value)
    }

    /// Skips `count` bytes.
    pub(crate) fn skip(&mut self, count: usize) -> Result<(), Fault> {
        let count = self.cursor.checked(count)?;
        self.cursor.advance(count);
        Ok(())
    }

    /// The next `at` bytes, and the bytes after them.
    pub(crate) fn split_at(&self, at: usize) -> Result<(Self, Self), Fault> {
        let (front, rest) = self.cursor.split_at(at)?;
        Ok((Self { cursor: front }, Self { cursor: rest }))
    }

    /// The buffers of the remaining bytes.
    pub(super) fn segments(&self) -> impl Iterator<Item = Segment> + 'c {
        self.cursor.pieces()
    }

    /// Writes all remaining bytes in one `pwritev` at `offset`. The position does not move.
    pub(crate) fn pwritev(&self, fd: impl std::os::fd::AsFd, offset: u64) -> io::Result<usize> {
        iov::pwritev(fd.as_fd(), &iov::iovecs(&self.cursor)?, offset)
    }

    /// The remaining bytes as host addresses, for io_uring. They stay valid as long as guest memory is mapped.
    pub(crate) fn iovecs(&self) -> io::Result<Vec<libc::iovec>> {
        iov::iovecs(&self.cursor)
    }
}

impl io::Read for Reader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(piece) = self.cursor.front() {
            let count = (piece.len as usize).min(buf.len() - filled);
            if count == 0 {
                break;
            }
            let slice = self.cursor.slice(Segment { len: count as u32, ..piece })?;
            slice.copy_to(&mut buf[filled..filled + count]);
            self.cursor.advance(count as u32);
            filled += count;
        }
        Ok(filled)
    }
}

/// Writes the answer to a request. Cloning gives a second, independent position.
#[derive(Clone, Debug)]
pub(crate) struct Writer<'c> {
    cursor: Cursor<'c>,
    size: u32,
}

impl<'c> Writer<'c> {
    pub(super) fn new(chain: &'c Chain) -> Self {
        let (segments, left) = (chain.writable(), chain.writable_len());
        Self { cursor: Cursor { mem: chain.mem(), head: chain.head(), segments, skip: 0, left }, size: left }
    }

    /// The number of bytes that can still be written.
    pub(crate) fn remaining(&self) -> usize {
        self.cursor.left as usize
    }

    /// Bytes written or skipped so far: the number to report as used if nothing was skipped.
    pub(crate) fn written(&self) -> u32 {
        self.size - self.cursor.left
    }

    /// Writes one plain value; [`ChainFault::TooShort`] when there is no room for it.
    pub(crate) fn write_obj<T: ByteValued>(&mut self, value: &T) -> Result<(), Fault> {
        self.cursor.checked(size_of::<T>())?;
        io::Write::write_all(self, value.as_slice())?;
        Ok(())
    }

    /// Skips `count` bytes.
    pub(crate) fn skip(&mut self, count: usize) -> Result<(), Fault> {
        let count = self.cursor.checked(count)?;
        self.cursor.advance(count);
        Ok(())
    }

    /// The next `at` bytes, and the bytes after them.
    pub(crate) fn split_at(&self, at: usize) -> Result<(Self, Self), Fault> {
        let (front, rest) = self.cursor.split_at(at)?;
        Ok((Self { cursor: front, size: front.left }, Self { cursor: rest, size: rest.left }))
    }

    /// Fills the remaining space with one `readv`: a datagram stays whole. The position does not move.
    pub(crate) fn readv(&self, fd: impl std::os::fd::AsFd) -> io::Result<usize> {
        iov::readv(fd.as_fd(), &iov::iovecs(&self.cursor)?)
    }

    /// Fills the remaining space with one `preadv` at `offset`. The position does not move.
    pub(crate) fn preadv(&self, fd: impl std::os::fd::AsFd, offset: u64) -> io::Result<usize> {
        iov::preadv(fd.as_fd(), &iov::iovecs(&self.cursor)?, offset)
    }

    /// The remaining space as host addresses, for io_uring. They stay valid as long as guest memory is mapped.
    pub(crate) fn iovecs(&self) -> io::Result<Vec<libc::iovec>> {
        iov::iovecs(&self.cursor)
    }
}

impl io::Write for Writer<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut taken = 0;
        while let Some(piece) = self.cursor.front() {
            let count = (piece.len as usize).min(buf.len() - taken);
            if count == 0 {
                break;
            }
            self.cursor.mem.write_slice(&buf[taken..taken + count], piece.addr).map_err(io::Error::other)?;
            self.cursor.advance(count as u32);
            taken += count;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
