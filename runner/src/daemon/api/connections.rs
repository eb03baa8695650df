//! The daemon's listener, with a limit of open connections for each account.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use axum::serve::Listener;
use garret_http::Connection;
use tokio::net::UnixListener;
use tokio::net::unix::SocketAddr;

use crate::daemon::streams::OF_ACCOUNT_MAX;

/// The most open connections of one uid other than root's. A terminal, a command and a follower of events take one each.
const CONNECTIONS_MAX: usize = 256;

/// An account with all its streams open can still list and end them.
const _: () = assert!(OF_ACCOUNT_MAX < CONNECTIONS_MAX);

/// The answer beyond the limit.
const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\n\
    connection: close\r\ncontent-length: 103\r\n\r\n\
    {\"status\":503,\"code\":\"unavailable\",\"detail\":\"this account has 256 connections open: end some commands\"}";

/// Accepts connections, and refuses those of an account that has too many.
pub(crate) struct AccountListener {
    listener: UnixListener,
    open: Arc<Mutex<HashMap<u32, usize>>>,
}

impl AccountListener {
    pub(crate) fn new(listener: UnixListener) -> Self {
        Self { listener, open: Arc::default() }
    }
}

impl Listener for AccountListener {
    type Io = Connection<Admitted>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            // Without credentials no handler does anything for the peer.
            let peer = stream.peer_cred().ok().map(|peer| (peer.uid(), peer.gid()));
            match Place::take(&self.open, peer.map_or(u32::MAX, |(uid, _)| uid)) {
                Some(place) => return (Connection::new(stream, Admitted { peer, _place: place }), address),
                // The socket's buffer is empty and has room for it.
                None => drop(stream.try_write(REFUSAL)),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// The peer's uid and group, as the kernel reported them when the connection was accepted, and its place.
pub(crate) struct Admitted {
    pub(super) peer: Option<(u32, u32)>,
    _place: Place,
}

/// One of an account's connections; it ends when this is dropped.
struct Place {
    open: Arc<Mutex<HashMap<u32, usize>>>,
    uid: u32,
}

impl Place {
    fn take(open: &Arc<Mutex<HashMap<u32, usize>>>, uid: u32) -> Option<Self> {
        let mut counts = open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(uid).or_default();
        if *count >= CONNECTIONS_MAX && uid != 0 {
            return None;
        }
        *count += 1;
        Some(Self { open: open.clone(), uid })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(count) = counts.get_mut(&self.uid) else { return };
        *count -= 1;
        if *count == 0 {
            counts.remove(&self.uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_a_limited_number_of_connections() {
        let open = Arc::default();
        let mut places: Vec<Place> = (0..CONNECTIONS_MAX).map_while(|_| Place::take(&open, 1000)).collect();
        assert_eq!(places.len(), CONNECTIONS_MAX);
        assert!(Place::take(&open, 1000).is_none());
        let other = Place::take(&open, 1001);
        assert!(other.is_some());
        places.pop();
        assert!(Place::take(&open, 1000).is_some());
        let roots: Vec<_> = (0..2 * CONNECTIONS_MAX).map(|_| Place::take(&open, 0)).collect();
        assert!(roots.iter().all(Option::is_some), "root can always do something about it");
        drop((places, other, roots));
        assert!(open.lock().unwrap().is_empty());
    }

    #[test]
    fn the_refusal_is_a_whole_answer() {
        let text = std::str::from_utf8(REFUSAL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        let details: garret_api::ProblemDetails = serde_json::from_str(body).unwrap();
        assert_eq!((details.status, details.problem.code), (503, garret_api::Code::Unavailable));
        assert!(details.problem.detail.contains(&CONNECTIONS_MAX.to_string()));
    }
}
