//! Reads a chain's bytes.

use std::io;
use std::os::fd::AsFd;

use vm_memory::ByteValued;

use super::cursor::Cursor;
use super::{Chain, Fault, Segment, iov};

/// Reads the bytes a driver sent. Cloning gives a second, independent position.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'c> {
    cursor: Cursor<'c>,
}

impl Chain {
    /// Reads the driver's data, regardless of the division into descriptors.
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader { cursor: Cursor::new(self.mem(), self.head(), self.readable(), self.readable_len()) }
    }
}

impl<'c> Reader<'c> {
    /// Bytes not yet read.
    pub(crate) fn remaining(&self) -> usize {
        self.cursor.left() as usize
    }

    /// Reads one plain value; [`ChainFault::TooShort`](super::ChainFault::TooShort) when there are not enough bytes.
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
    pub(crate) fn pwritev(&self, fd: impl AsFd, offset: u64) -> io::Result<usize> {
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
