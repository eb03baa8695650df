//! The Unix sockets on the host's side: the socket that clients connect to, and the sockets that the guest may reach.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::BuildError;

/// The most clients that the kernel keeps waiting.
const LISTEN_BACKLOG: i32 = 128;
/// The longest path of a Unix socket, without its final zero byte.
const PATH_MAX: usize = 107;
/// The longest suffix that a guest's port adds to the path: `_4294967295`.
const SUFFIX_MAX: usize = 11;

/// See the module.
pub(super) struct Host {
    listener: UnixListener,
    /// The prefix of the paths that the guest can reach; `None` if it can reach no socket.
    socket: Option<PathBuf>,
}

impl Host {
    /// Takes over a socket that already listens.
    pub(super) fn inherit(listener: UnixListener) -> Self {
        Self { listener, socket: None }
    }

    /// Listens on `socket`, for its owner only. Replaces a socket file on which no process listens any more.
    pub(super) fn listen(socket: &Path) -> Result<Self, BuildError> {
        let failed = |source| BuildError::Listen { path: socket.to_owned(), source };
        if socket.as_os_str().len() + SUFFIX_MAX > PATH_MAX {
            return Err(BuildError::PathTooLong { path: socket.to_owned(), limit: PATH_MAX - SUFFIX_MAX });
        }
        remove_stale(socket)?;
        let fd = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(|errno| failed(errno.into()))?;
        // The file gets the socket's mode at the bind, so other users can never connect.
        let listen = || -> io::Result<()> {
            rustix::fs::fchmod(fd.as_fd(), Mode::RUSR | Mode::WUSR)?;
            rustix::net::bind(&fd, &SocketAddrUnix::new(socket)?)?;
            Ok(rustix::net::listen(&fd, LISTEN_BACKLOG)?)
        };
        listen().map_err(failed)?;
        Ok(Self { listener: fd.into(), socket: Some(socket.to_owned()) })
    }

    /// The socket clients connect to; non-blocking.
    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Connects to the socket for the guest's host port `port`: `<socket>_<port>`. Never blocks.
    pub(super) fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let socket = self.socket.clone().ok_or(ErrorKind::ConnectionRefused)?;
        let mut path = socket.into_os_string();
        path.push(format!("_{port}"));
        let fd = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        // A Unix socket connects at once or fails; a full queue is EAGAIN.
        rustix::net::connect(&fd, &SocketAddrUnix::new(Path::new(&path))?)?;
        Ok(fd.into())
    }
}

fn remove_stale(socket: &Path) -> Result<(), BuildError> {
    let failed = |source| BuildError::Listen { path: socket.to_owned(), source };
    match std::fs::symlink_metadata(socket) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BuildError::NotASocket { path: socket.to_owned() });
        }
        Ok(_) => {}
    }
    if UnixStream::connect(socket).is_ok() {
        return Err(BuildError::InUse { path: socket.to_owned() });
    }
    std::fs::remove_file(socket).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_socket_is_its_owners_and_a_stale_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let first = Host::listen(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Host::listen(&path), Err(BuildError::InUse { .. })));
        drop(first);
        Host::listen(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        std::fs::write(&path, "precious").unwrap();
        let Err(error) = Host::listen(&path) else { panic!("a file was taken for a socket") };
        assert_eq!(error.to_string(), format!("vsock: {} is not a socket; move it away", path.display()));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_path_the_kernel_cannot_hold_is_refused_by_length() {
        let path = PathBuf::from(format!("/{}", "x".repeat(96)));
        let Err(error) = Host::listen(&path) else { panic!("97 bytes and a suffix fit") };
        assert_eq!(
            error.to_string(),
            format!("vsock: the path {} is longer than 96 bytes; use a shorter one", path.display())
        );
    }
}
