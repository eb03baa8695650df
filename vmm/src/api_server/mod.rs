//! The machine's HTTP API on its Unix socket, on one thread. It holds no state: every call is a command to the driver.

mod openapi;
mod routes;

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::sync::oneshot;

pub use openapi::document;

use crate::control::{Event, Events};
use crate::seccomp::Role;
use crate::thread;

/// How long open connections may keep the process once the machine has ended.
const GRACE: Duration = Duration::from_secs(1);

/// The running server.
pub struct ApiServer {
    thread: JoinHandle<()>,
    end: oneshot::Sender<()>,
    socket: PathBuf,
}

/// What is made before the filter closes.
struct Prepared {
    runtime: Runtime,
    listener: UnixListener,
    terminate: [SignalStream; 2],
}

impl ApiServer {
    /// Listens on `socket`, in place of what was left there, and from now on turns SIGTERM and SIGINT into events.
    pub fn spawn(socket: &Path, events: Events) -> io::Result<Self> {
        let (end, ended) = oneshot::channel();
        let path = socket.to_owned();
        let prepare = move || prepare(&path);
        let thread = thread::spawn_prepared("api", Role::Api, prepare, move |prepared| serve(prepared, events, ended))?;
        Ok(Self { thread, end, socket: socket.to_owned() })
    }

    /// Answers what has been asked, then closes and removes the socket.
    pub fn end(self) {
        let _ = self.end.send(());
        let _ = self.thread.join();
        let _ = fs::remove_file(&self.socket);
    }
}

/// The signals which end a machine. Blocked before the first thread is made, they reach the API's thread alone.
pub fn ending_signals() -> SigSet {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT])
}

fn prepare(socket: &Path) -> io::Result<Prepared> {
    let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
    let entered = runtime.enter();
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, Permissions::from_mode(0o600))?;
    let terminate = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    ending_signals().thread_unblock()?;
    drop(entered);
    Ok(Prepared { runtime, listener, terminate })
}

fn serve(prepared: Prepared, events: Events, ended: oneshot::Receiver<()>) {
    let Prepared { runtime, listener, terminate: [mut term, mut int] } = prepared;
    let app = routes::router(events.clone());
    runtime.block_on(async move {
        let (last_call, closing) = oneshot::channel::<()>();
        let server = axum::serve(listener, app).with_graceful_shutdown(async {
            let _ = closing.await;
        });
        let server = tokio::spawn(server.into_future());
        tokio::pin!(ended);
        loop {
            tokio::select! {
                _ = term.recv() => events.send(Event::Terminate),
                _ = int.recv() => events.send(Event::Terminate),
                _ = &mut ended => break,
            }
        }
        let _ = last_call.send(());
        let _ = tokio::time::timeout(GRACE, server).await;
    });
}
