//! This program inside a guest: it is one static file, and the guests' root has nothing that does these few things.

use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::Context;
use clap::Subcommand;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, listen, socket};

use super::wire;

/// What it can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Helper {
    /// Serve the harness's connections until killed
    Serve {
        /// The vsock port
        #[arg(long, value_name = "PORT", required_unless_present = "tcp")]
        vsock: Option<u32>,
        /// The TCP port
        #[arg(long, value_name = "PORT", conflicts_with = "vsock")]
        tcp: Option<u16>,
    },
}

/// Whatever context id this guest has.
const ANY_CID: u32 = u32::MAX;

/// Does it.
///
/// # Errors
/// The port cannot be listened on.
pub(crate) fn run(helper: &Helper) -> anyhow::Result<()> {
    match helper {
        Helper::Serve { vsock: Some(port), .. } => serve_vsock(*port).context("vsock"),
        Helper::Serve { tcp, .. } => serve_tcp(tcp.unwrap_or_default()).context("TCP"),
    }
}

fn serve_vsock(port: u32) -> anyhow::Result<()> {
    let listener = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(listener.as_raw_fd(), &VsockAddr::new(ANY_CID, port))?;
    listen(&listener, Backlog::new(16)?)?;
    loop {
        let stream: OwnedFd = rustix::net::accept(&listener)?;
        serve_one(UnixStream::from(stream)); // a byte stream like any other
    }
}

fn serve_tcp(port: u16) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    loop {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        serve_one(stream);
    }
}

/// A connection that breaks is the harness's business.
fn serve_one(mut stream: impl std::io::Read + std::io::Write + Send + 'static) {
    thread::spawn(move || wire::serve(&mut stream));
}
