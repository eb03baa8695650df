//! Sockets that the process inherits: the process that created its jail has bound them to known descriptor numbers.

#![allow(unsafe_code, reason = "taking over inherited descriptors")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use rustix::io::{Errno, FdFlags};
use rustix::net::{AddressFamily, SocketType};

/// The most connections that the kernel keeps waiting.
const LISTEN_BACKLOG: i32 = 128;
/// The smaller numbers are the standard streams.
const NUMBER_MIN: RawFd = 3;

/// Listens on the inherited socket `number`; non-blocking. Call it once for each number, before other descriptors are
/// opened.
///
/// It calls `listen` even if the socket already listens: `SO_PEERCRED` shows clients which process called `listen`
/// last.
///
/// # Errors
/// There is no such descriptor, or it is no bound Unix stream socket.
pub(crate) fn listen(number: RawFd) -> io::Result<UnixListener> {
    let fd = take(number)?;
    let is_stream = rustix::net::sockopt::socket_domain(&fd)? == AddressFamily::UNIX
        && rustix::net::sockopt::socket_type(&fd)? == SocketType::STREAM;
    if !is_stream {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("descriptor {number} is no Unix stream socket"),
        ));
    }
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    rustix::net::listen(&fd, LISTEN_BACKLOG)?;
    let listener = UnixListener::from(fd);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn take(number: RawFd) -> io::Result<OwnedFd> {
    if number < NUMBER_MIN {
        return Err(Errno::BADF.into());
    }
    // SAFETY: the call only checks whether the descriptor is open.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_getfd(borrowed)?;
    // SAFETY: it is open, and by this function's contract nothing else in the process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};
    use std::os::unix::net::UnixStream;

    use rustix::net::{SocketAddrUnix, bind, socket};

    use super::*;

    #[test]
    fn peer_credentials_name_the_process_that_listens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let bound = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&bound, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        let listener = listen(bound.into_raw_fd()).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        let peer = rustix::net::sockopt::socket_peercred(&client).unwrap();
        assert_eq!(peer.pid, rustix::process::getpid());
        assert!(listener.accept().is_ok());
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn other_descriptors_are_refused() {
        assert!(listen(0).is_err());
        assert!(listen(1_000_000).is_err());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(listen(file.as_raw_fd()).is_err());
        std::mem::forget(file);
    }
}
