//! Closes descriptors that one of our programs inherited by accident.

#![allow(unsafe_code, reason = "close_range(2) has no safe wrapper")]

use std::io;

/// Closes all but the standard streams: a descriptor that the daemon's own parent left open could be used to leave a
/// jail. Call this before anything is opened.
///
/// # Errors
/// The kernel has no close_range(2) (Linux before 5.9).
pub(super) fn close_inherited() -> io::Result<()> {
    // SAFETY: no value of this process owns a descriptor beyond the standard streams yet.
    match unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
