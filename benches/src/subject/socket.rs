//! Connects to a vsock port of a guest, through a VMM's Unix socket or through the host's kernel.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};

/// A stream without data for this long is broken.
const STALLED: Duration = Duration::from_secs(60);
/// A listening agent answers at once. Without an answer the harness tries again.
const AGENT: Duration = Duration::from_secs(2);

/// The address of a guest's ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GuestSocket {
    /// A Unix socket that needs `CONNECT <port>` first.
    Unix(PathBuf),
    /// The context id of a guest behind vhost.
    Vhost(u32),
}

impl GuestSocket {
    /// Connects to a port. Both kinds of socket are byte streams with the same calls, so one type serves for both.
    ///
    /// # Errors
    /// No process listens there yet.
    pub(crate) fn connect(&self, port: u32) -> anyhow::Result<UnixStream> {
        let stream = match self {
            Self::Unix(path) => {
                let mut stream = UnixStream::connect(path).with_context(|| path.display().to_string())?;
                stream.set_read_timeout(Some(AGENT))?;
                shake_hands(&mut stream, port)?;
                stream
            }
            Self::Vhost(cid) => {
                let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
                connect(socket.as_raw_fd(), &VsockAddr::new(*cid, port))?;
                UnixStream::from(socket)
            }
        };
        stream.set_read_timeout(Some(STALLED))?;
        stream.set_write_timeout(Some(STALLED))?;
        Ok(stream)
    }

    /// Whether the agent answers. Every subject gets the same request, and the answer must begin with a status of
    /// success.
    pub(crate) fn agent_answers(&self) -> bool {
        let asked = self.connect(garret_api::agent::PORT).and_then(|mut stream| {
            stream.set_read_timeout(Some(AGENT))?;
            stream.write_all(b"GET /v1/agent HTTP/1.1\r\nHost: garret\r\nConnection: close\r\n\r\n")?;
            let mut answer = [0; 12];
            stream.read_exact(&mut answer)?;
            Ok(answer)
        });
        asked.is_ok_and(|answer| &answer == b"HTTP/1.1 200")
    }
}

/// Reads byte by byte: the bytes after the line are the guest's.
fn shake_hands(stream: &mut UnixStream, port: u32) -> anyhow::Result<()> {
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut byte = [0];
    while answer.last() != Some(&b'\n') && answer.len() < 32 {
        match stream.read(&mut byte) {
            Ok(0) => bail!("no process of the guest listens on port {port}"),
            Ok(_) => answer.push(byte[0]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    if answer.starts_with(b"OK ") { Ok(()) } else { bail!("port {port}: {}", String::from_utf8_lossy(&answer)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    /// A VMM's socket that accepts one connection. It answers the handshake by `hello` and the next request by
    /// `answer`.
    fn serve(hello: &'static str, answer: &'static str) -> (tempfile::TempDir, GuestSocket) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vsock.sock");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = [0; 4096];
            assert_eq!(stream.read(&mut bytes).unwrap(), "CONNECT 1024\n".len());
            stream.write_all(hello.as_bytes()).unwrap();
            let _ = stream.read(&mut bytes);
            let _ = stream.write_all(answer.as_bytes());
        });
        (folder, GuestSocket::Unix(path))
    }

    #[test]
    fn an_agent_is_up_when_it_answers_well() {
        for (hello, answer, up) in [
            ("OK 1073741824\n", "HTTP/1.1 200 OK\r\n\r\n{}", true),
            ("OK 1\n", "HTTP/1.1 503 no\r\n\r\n", false),
            ("OK 1\n", "", false),
            ("NO\n", "HTTP/1.1 200 OK\r\n\r\n", false),
        ] {
            let (_folder, socket) = serve(hello, answer);
            assert_eq!(socket.agent_answers(), up, "{hello} {answer}");
        }
        assert!(!GuestSocket::Unix("/no/such".into()).agent_answers());
    }
}
