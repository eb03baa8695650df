//! The machine's HTTP API on its Unix socket, on one thread. It holds no state: every call is a command to the driver.

mod limit;
mod openapi;
mod routes;

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use garret_api::vmm::SocketAt;
use nix::sys::signal::{SigSet, Signal};
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::sync::oneshot;

pub use openapi::document;

use self::limit::Limited;
use crate::control::{Event, Events};
use crate::inherited;
use crate::seccomp::Role;
use crate::thread;

/// How long open connections may keep the process once the machine has ended.
const GRACE: Duration = Duration::from_secs(1);

/// Open connections at once: the runner has fewer than ten.
const CONNECTIONS_MAX: usize = 32;

/// The running server.
pub struct ApiServer {
    thread: JoinHandle<()>,
    end: oneshot::Sender<()>,
    socket: SocketAt,
}

/// What is made before the filter closes.
struct Prepared {
    runtime: Runtime,
    listener: UnixListener,
    terminate: [SignalStream; 2],
}

impl ApiServer {
    /// Listens on `socket`, and from now on turns SIGTERM and SIGINT into events. What was left at a path is replaced.
    pub fn spawn(socket: SocketAt, events: Events) -> io::Result<Self> {
        let (end, ended) = oneshot::channel();
        let at = socket.clone();
        let prepare = move || prepare(&at);
        let thread = thread::spawn_prepared("api", Role::Api, prepare, move |prepared| serve(prepared, events, ended))?;
        Ok(Self { thread, end, socket })
    }

    /// Answers what has been asked, then closes the socket, and removes it if it has a path.
    pub fn end(self) {
        let _ = self.end.send(());
        let _ = self.thread.join();
        if let Some(path) = self.socket.path() {
            let _ = fs::remove_file(path);
        }
    }
}

/// The signals which end a machine. Blocked before the first thread is made, they reach the API's thread alone.
pub fn ending_signals() -> SigSet {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT])
}

fn prepare(socket: &SocketAt) -> io::Result<Prepared> {
    let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
    let entered = runtime.enter();
    let listener = match socket {
        SocketAt::Path(path) => listen(path)?,
        SocketAt::Descriptor(number) => UnixListener::from_std(inherited::listen(*number)?)?,
    };
    let terminate = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    ending_signals().thread_unblock()?;
    drop(entered);
    Ok(Prepared { runtime, listener, terminate })
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn serve(prepared: Prepared, events: Events, ended: oneshot::Receiver<()>) {
    let Prepared { runtime, listener, terminate: [mut term, mut int] } = prepared;
    let app = routes::router(events.clone());
    runtime.block_on(async move {
        let (last_call, closing) = oneshot::channel::<()>();
        let server = axum::serve(Limited::new(listener, CONNECTIONS_MAX), app).with_graceful_shutdown(async {
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
