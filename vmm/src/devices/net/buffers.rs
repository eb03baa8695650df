//! The guest's receive buffers, ready to take the next packet.
#![allow(unsafe_code, reason = "vectored reads into guest memory")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::virtio::{Chain, Fault, Reader};

/// `readv` takes 1024 buffers; the last one receives the bytes that the guest has no room for.
const PIECES_MAX: usize = 1023;

/// Chains in the order they were taken, and their bytes as one list of host addresses.
#[derive(Default)]
pub(super) struct Buffers {
    chains: VecDeque<(Chain, usize)>,
    pieces: Vec<libc::iovec>,
    capacity: usize,
}

// SAFETY: only the kernel uses the addresses, whichever thread makes the call. They point into guest memory, which
// belongs to no thread.
unsafe impl Send for Buffers {}

impl Buffers {
    /// The number of bytes the chains can hold.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// Whether one more chain of up to `pieces` descriptors would be too many for one read.
    pub(super) fn is_full(&self, pieces: u16) -> bool {
        self.pieces.len() + usize::from(pieces) > PIECES_MAX
    }

    /// Adds a chain after the others.
    pub(super) fn push(&mut self, chain: Chain) -> Result<(), Fault> {
        let pieces = chain.writer().iovecs()?;
        self.capacity += chain.writable_len() as usize;
        self.chains.push_back((chain, pieces.len()));
        self.pieces.extend(pieces);
        Ok(())
    }

    /// Takes the first chain.
    pub(super) fn pop(&mut self) -> Option<Chain> {
        let (chain, pieces) = self.chains.pop_front()?;
        self.pieces.drain(..pieces);
        self.capacity -= chain.writable_len() as usize;
        Some(chain)
    }

    /// Takes the last chain.
    pub(super) fn pop_back(&mut self) -> Option<Chain> {
        let (chain, pieces) = self.chains.pop_back()?;
        self.pieces.truncate(self.pieces.len() - pieces);
        self.capacity -= chain.writable_len() as usize;
        Some(chain)
    }

    /// The chain at `index`.
    pub(super) fn get(&self, index: usize) -> Option<&Chain> {
        self.chains.get(index).map(|(chain, _)| chain)
    }

    /// Reads one packet: into the chains first, and the bytes that they cannot hold into `spill`.
    pub(super) fn read(&mut self, from: BorrowedFd<'_>, spill: &mut [u8]) -> io::Result<usize> {
        let count = self.pieces.len();
        self.pieces.push(libc::iovec { iov_base: spill.as_mut_ptr().cast(), iov_len: spill.len() });
        // SAFETY: all pieces but the last are checked pieces of guest memory which the chains keep mapped, given to the
        // kernel as raw addresses; the last is `spill`, borrowed for the call. Their number is at most 1024.
        let read = unsafe { libc::readv(from.as_raw_fd(), self.pieces.as_ptr(), self.pieces.len() as i32) };
        self.pieces.truncate(count);
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }
}

/// Writes one packet: our header, then the rest of what the guest sent.
pub(super) fn write(to: BorrowedFd<'_>, header: &[u8], rest: &Reader<'_>) -> io::Result<usize> {
    let rest = rest.iovecs()?;
    let mut pieces = Vec::with_capacity(rest.len() + 1);
    pieces.push(libc::iovec { iov_base: header.as_ptr().cast_mut().cast(), iov_len: header.len() });
    pieces.extend(rest);
    // SAFETY: the kernel only reads them: `header` is borrowed for the call, the others are checked pieces of guest
    // memory, which the reader's chain keeps mapped. Their number is at most a queue's size and one.
    let written = unsafe { libc::writev(to.as_raw_fd(), pieces.as_ptr(), pieces.len() as i32) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}
