//! Writes a chain's bytes.

use std::io;
use std::os::fd::AsFd;

use vm_memory::ByteValued;

use super::cursor::Cursor;
use super::{Chain, Fault, Segment, iov};

/// Writes the answer to a request. Cloning gives a second, independent position.
#[derive(Clone, Debug)]
pub(crate) struct Writer<'c> {
    cursor: Cursor<'c>,
    size: u32,
}

impl Chain {
    /// Writes the answer, regardless of the division into descriptors.
    pub(crate) fn writer(&self) -> Writer<'_> {
        let size = self.writable_len();
        Writer { cursor: Cursor::new(self.mem(), self.head(), self.writable(), size), size }
    }
}

impl<'c> Writer<'c> {
    /// The number of bytes that can still be written.
    pub(crate) fn remaining(&self) -> usize {
        self.cursor.left() as usize
    }

    /// Bytes written or skipped so far: the number to report as used if nothing was skipped.
    pub(crate) fn written(&self) -> u32 {
        self.size - self.cursor.left()
    }

    /// Writes one plain value; [`ChainFault::TooShort`](super::ChainFault::TooShort) when there is no room for it.
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
        Ok((Self { cursor: front, size: front.left() }, Self { cursor: rest, size: rest.left() }))
    }

    /// Fills the remaining space with one `readv`: a datagram stays whole. The position does not move.
    pub(crate) fn readv(&self, fd: impl AsFd) -> io::Result<usize> {
        iov::readv(fd.as_fd(), &iov::iovecs(&self.cursor)?)
    }

    /// Fills the remaining space with one `preadv` at `offset`. The position does not move.
    pub(crate) fn preadv(&self, fd: impl AsFd, offset: u64) -> io::Result<usize> {
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
            let slice = self.cursor.slice(Segment { len: count as u32, ..piece })?;
            slice.copy_from(&buf[taken..taken + count]);
            self.cursor.advance(count as u32);
            taken += count;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
