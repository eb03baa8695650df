//! This program inside a guest: one static file, because the guests' root has no programs for these tasks.

use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::Context;
use clap::Subcommand;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, listen, socket};

use super::wire;

/// The commands of the helper.
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

/// Any context id that this guest has.
const ANY_CID: u32 = u32::MAX;

/// Runs the command.
///
/// # Errors
/// It cannot listen on the port.
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
        serve_one(UnixStream::from(stream)); // a vsock stream has the same calls
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

/// If a connection breaks, the harness reports it.
fn serve_one(mut stream: impl std::io::Read + std::io::Write + Send + 'static) {
    thread::spawn(move || wire::serve(&mut stream));
}
