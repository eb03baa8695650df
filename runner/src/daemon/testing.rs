//! A daemon for unit tests: its folders are in a temporary folder, and no machine can start.

use std::fs;
use std::future::IntoFuture;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use garret_api::MachineId;

use super::Daemon;
use super::admission::Host;
use super::state::Store;
use crate::accounts::NameService;
use crate::config::Config;

/// The id of a machine, from a number.
pub(super) fn id(number: u32) -> MachineId {
    format!("m{number}").parse().unwrap()
}

/// A daemon with its state in `folder`, and a receiver of the machines that it pokes.
pub(super) fn daemon(folder: &Path, names: NameService) -> (Arc<Daemon>, mpsc::UnboundedReceiver<MachineId>) {
    daemon_with(folder, names, |_| {})
}

/// The same with changes to its configuration.
pub(super) fn daemon_with(
    folder: &Path,
    names: NameService,
    change: impl FnOnce(&mut Config),
) -> (Arc<Daemon>, mpsc::UnboundedReceiver<MachineId>) {
    let mut config = Config { state: folder.into(), run: folder.into(), ..Config::default() };
    // A test never starts a machine on the host that it runs on.
    config.artifacts.data_template = folder.join("no-template");
    // Long enough for a second try.
    config.machine.stop_deadline_s = 3;
    change(&mut config);
    let network = config.network(Vec::new()).unwrap();
    let host = |_: &Config| Host { cpus: 2, memory_mib: 4000, swap_mib: 0, reserve_mib: 256 };
    let store = Store::open(&folder.join("state.db")).unwrap();
    Daemon::new(config, network, host, store, names)
}

/// Serves this router as the agent of the machine: behind the vsock socket of a VMM. The daemon connects only after
/// `set_vmm`.
pub(super) fn serve_agent(daemon: &Daemon, machine: MachineId, router: Router) {
    tokio::spawn(axum::serve(Vsock(listen(&daemon.paths(machine).vsock_socket())), router).into_future());
}

/// Serves this router as the API of the machine's VMM. The same holds for the connection.
pub(super) fn serve_vmm(daemon: &Daemon, machine: MachineId, router: Router) {
    tokio::spawn(axum::serve(listen(&daemon.paths(machine).api_socket()), router).into_future());
}

fn listen(socket: &Path) -> UnixListener {
    fs::create_dir_all(socket.parent().unwrap()).unwrap();
    UnixListener::bind(socket).unwrap()
}

/// A VMM's vsock socket, behind which an HTTP server listens.
struct Vsock(UnixListener);

impl axum::serve::Listener for Vsock {
    type Io = UnixStream;
    type Addr = ();

    async fn accept(&mut self) -> (UnixStream, ()) {
        loop {
            let (mut stream, _) = self.0.accept().await.unwrap();
            // A caller may disconnect at its deadline.
            if handshake(&mut stream).await.is_ok() {
                return (stream, ());
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn handshake(stream: &mut UnixStream) -> std::io::Result<()> {
    while stream.read_u8().await? != b'\n' {}
    stream.write_all(b"OK 1\n").await
}
