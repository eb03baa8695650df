//! Vectored system calls that read and write guest memory directly: no copy, no Rust reference to bytes the guest may
//! change.
#![allow(unsafe_code, reason = "vectored reads and writes of guest memory")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::cursor::Cursor;

/// The host addresses of a cursor's bytes. Creating them is safe, using them is not: see each call below.
pub(super) fn iovecs(cursor: &Cursor<'_>) -> io::Result<Vec<libc::iovec>> {
    cursor
        .pieces()
        .map(|piece| {
            let slice = cursor.slice(piece)?;
            Ok(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() })
        })
        .collect()
}

fn count(iov: &[libc::iovec]) -> io::Result<libc::c_int> {
    libc::c_int::try_from(iov.len()).map_err(io::Error::other)
}

fn offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn result(returned: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}

pub(super) fn readv(fd: BorrowedFd<'_>, iov: &[libc::iovec]) -> io::Result<usize> {
    // SAFETY: every iovec was made by `iovecs` from a checked slice of guest memory, which the caller's chain keeps
    // mapped.
    result(unsafe { libc::readv(fd.as_raw_fd(), iov.as_ptr(), count(iov)?) })
}

pub(super) fn preadv(fd: BorrowedFd<'_>, iov: &[libc::iovec], at: u64) -> io::Result<usize> {
    // SAFETY: as in `readv`.
    result(unsafe { libc::preadv(fd.as_raw_fd(), iov.as_ptr(), count(iov)?, offset(at)?) })
}

pub(super) fn pwritev(fd: BorrowedFd<'_>, iov: &[libc::iovec], at: u64) -> io::Result<usize> {
    // SAFETY: as in `readv`.
    result(unsafe { libc::pwritev(fd.as_raw_fd(), iov.as_ptr(), count(iov)?, offset(at)?) })
}
