//! Serves the daemon's connections: a limited number for each account, and a limited time for each request's head.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Extension;
use axum::serve::Listener;
use garret_http::Connection;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};

use super::peer::Credentials;
use super::router;
use crate::daemon::Daemon;
use crate::daemon::streams::OF_ACCOUNT_MAX;

/// The most open connections of one account other than root. A terminal, a command and a follower of events take one each.
const CONNECTIONS_MAX: usize = 256;
/// The time for a request's head, in which a connection may also be idle.
pub(crate) const HEAD_TIME: Duration = Duration::from_secs(30);
/// The most bytes that a connection buffers while its head arrives.
const HEAD_MAX: usize = 64 * 1024;

/// An account with all its streams open can still list and end them.
const _: () = assert!(OF_ACCOUNT_MAX < CONNECTIONS_MAX);

/// The answer beyond the limit.
const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\n\
    connection: close\r\ncontent-length: 103\r\n\r\n\
    {\"status\":503,\"code\":\"unavailable\",\"detail\":\"this account has 256 connections open: end some commands\"}";

/// Serves the API on this socket until the future is dropped. `head_time`: see [`HEAD_TIME`].
pub(crate) async fn serve(mut listener: UnixListener, daemon: Arc<Daemon>, head_time: Duration) {
    let (open, router) = (Places::default(), router(daemon.clone()));
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(head_time).max_buf_size(HEAD_MAX);
    loop {
        let (stream, _) = Listener::accept(&mut listener).await;
        // Without credentials the peer is refused.
        let credentials = Credentials(stream.peer_cred().ok().map(|peer| (peer.uid(), peer.gid())));
        let holder = Holder::of(credentials, |uid| daemon.names.knows(uid));
        let Some(place) = Place::take(&open, holder) else {
            refuse(stream);
            continue;
        };
        let service = TowerToHyperService::new(router.clone().layer(Extension(credentials)));
        let connection = server.serve_connection(TokioIo::new(Connection::new(stream, place)), service);
        // How a connection ends concerns its client alone.
        tokio::spawn(async move { drop(connection.with_upgrades().await) });
    }
}

/// The socket's buffer is empty and has room for the answer. tokio has not polled the new socket, so it would not write.
fn refuse(stream: UnixStream) {
    drop(stream.into_std().and_then(|mut stream| stream.write(REFUSAL)));
}

/// Whose number of connections is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Holder {
    Root,
    Account(u32),
    /// All uids together whose account was never seen: one account may have thousands of subordinate uids.
    Strangers,
}

impl Holder {
    fn of(credentials: Credentials, is_known: impl Fn(u32) -> bool) -> Self {
        match credentials.uid() {
            Some(0) => Self::Root,
            Some(uid) if is_known(uid) => Self::Account(uid),
            _ => Self::Strangers,
        }
    }
}

type Places = Arc<Mutex<HashMap<Holder, usize>>>;

/// One of a holder's connections; it ends when this is dropped.
struct Place {
    open: Places,
    holder: Holder,
}

impl Place {
    fn take(open: &Places, holder: Holder) -> Option<Self> {
        let mut counts = open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(holder).or_default();
        if *count >= CONNECTIONS_MAX && holder != Holder::Root {
            return None;
        }
        *count += 1;
        Some(Self { open: open.clone(), holder })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(count) = counts.get_mut(&self.holder) else { return };
        *count -= 1;
        if *count == 0 {
            counts.remove(&self.holder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_a_limited_number_of_connections() {
        let open = Places::default();
        let take = |uid| Place::take(&open, Holder::of(Credentials(Some((uid, uid))), |uid| uid < 2000));
        let mut places: Vec<Place> = (0..CONNECTIONS_MAX).map_while(|_| take(1000)).collect();
        assert_eq!(places.len(), CONNECTIONS_MAX);
        assert!(take(1000).is_none());
        let other = take(1001);
        assert!(other.is_some());
        places.pop();
        assert!(take(1000).is_some());
        let roots: Vec<_> = (0..2 * CONNECTIONS_MAX).map(|_| take(0)).collect();
        assert!(roots.iter().all(Option::is_some), "root can always do something about it");
        let strangers: Vec<_> = (2000..).map_while(&take).collect();
        assert_eq!(strangers.len(), CONNECTIONS_MAX, "uids without account share one limit");
        assert!(take(1001).is_some());
        drop((places, other, roots, strangers));
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
