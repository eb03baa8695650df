//! The machine's HTTP API on its Unix socket, on one thread. It holds no state: every call is a command to the driver.

mod limit;
#[cfg(test)]
mod openapi;
mod routes;
#[cfg(test)]
mod tests;

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use garret_api::vmm::SocketAt;
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use self::limit::LimitedListener;
use crate::control::Events;
use crate::inherited;
use crate::seccomp::Role;
use crate::thread;

/// How long open connections may delay the end of the process after the machine has ended.
const GRACE: Duration = Duration::from_secs(1);

/// The most open connections; the runner has fewer than ten.
const CONNECTIONS_MAX: usize = 32;

pub(crate) struct ApiServer {
    thread: JoinHandle<()>,
    end: oneshot::Sender<()>,
    socket: SocketAt,
}

/// The parts that are created before the filter is installed.
struct Prepared {
    runtime: Runtime,
    listener: UnixListener,
}

impl ApiServer {
    /// Listens on `socket`. An existing file at its path is replaced.
    pub(crate) fn spawn(socket: SocketAt, events: Events) -> io::Result<Self> {
        let (end, ended) = oneshot::channel();
        let at = socket.clone();
        let prepare = move || prepare(&at);
        let thread = thread::spawn_prepared("api", Role::Api, prepare, move |prepared| serve(prepared, events, ended))?;
        Ok(Self { thread, end, socket })
    }

    /// Answers pending requests, then closes the socket, and removes it if it has a path.
    pub(crate) fn end(self) {
        let _ = self.end.send(());
        let _ = self.thread.join();
        if let Some(path) = self.socket.path() {
            let _ = fs::remove_file(path);
        }
    }
}

fn prepare(socket: &SocketAt) -> io::Result<Prepared> {
    let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
    let entered = runtime.enter();
    let listener = match socket {
        SocketAt::Path(path) => listen(path)?,
        SocketAt::Descriptor(number) => UnixListener::from_std(inherited::listen(*number)?)?,
    };
    drop(entered);
    Ok(Prepared { runtime, listener })
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
    let Prepared { runtime, listener } = prepared;
    let app = routes::router(events);
    runtime.block_on(async move {
        let (last_call, closing) = oneshot::channel::<()>();
        let server = axum::serve(LimitedListener::new(listener, CONNECTIONS_MAX), app).with_graceful_shutdown(async {
            let _ = closing.await;
        });
        let server = tokio::spawn(server.into_future());
        let _ = ended.await;
        let _ = last_call.send(());
        let _ = tokio::time::timeout(GRACE, server).await;
    });
}
