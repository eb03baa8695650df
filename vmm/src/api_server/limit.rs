//! A listener with a limit of open connections. Those beyond it wait in the kernel's queue.

use std::io;
use std::sync::Arc;

use axum::serve::Listener;
use garret_http::Connection;
use tokio::net::UnixListener;
use tokio::net::unix::SocketAddr;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(super) struct LimitedListener {
    listener: UnixListener,
    places: Arc<Semaphore>,
}

impl LimitedListener {
    pub(super) fn new(listener: UnixListener, connections: usize) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(connections)) }
    }
}

impl Listener for LimitedListener {
    type Io = Connection<Option<OwnedSemaphorePermit>>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        // It fails only if the semaphore is closed, which it never is.
        let place = self.places.clone().acquire_owned().await.ok();
        let (stream, address) = Listener::accept(&mut self.listener).await;
        (Connection::new(stream, place), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
