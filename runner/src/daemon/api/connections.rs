//! Serves the daemon's connections: a limited number for each account, and a limited time for each request's head.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Extension;
use axum::serve::Listener;
use garret_api::{Code, PROBLEM_JSON, Problem, ProblemDetails};
use garret_http::Connection;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};

use super::peer::Credentials;
use super::router;
use crate::daemon::Daemon;
use crate::daemon::state::machines;
use crate::daemon::streams::OF_ACCOUNT_MAX;

/// The most open connections of one account other than root. A terminal, a command and a follower of events take one each.
pub(super) const CONNECTIONS_MAX: usize = 256;
const TOO_MANY: &str = "this account has 256 connections open: end some commands";
/// The time for a request's head, in which a connection may also be idle.
pub(crate) const HEAD_TIME: Duration = Duration::from_secs(30);
/// The most bytes that a connection buffers while its head arrives.
const HEAD_MAX: usize = 64 * 1024;

/// An account with all its streams open can still list and end them.
const _: () = assert!(OF_ACCOUNT_MAX < CONNECTIONS_MAX);

/// Serves the API on this socket until the future is dropped. `head_time`: see [`HEAD_TIME`].
pub(crate) async fn serve(mut listener: UnixListener, daemon: Arc<Daemon>, head_time: Duration) {
    let (open, router) = (Places::default(), router(daemon.clone()));
    // Their accounts need not be looked up first. If the state cannot be read now, their first requests do that.
    let owners = daemon.read(machines::all).await.unwrap_or_default();
    let owners: HashSet<u32> = owners.into_iter().map(|machine| machine.owner).collect();
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(head_time).max_buf_size(HEAD_MAX);
    loop {
        // It waits and tries again after an error, for example without free descriptors.
        let (stream, _) = Listener::accept(&mut listener).await;
        // Without credentials the peer is refused.
        let credentials = Credentials(stream.peer_cred().ok().map(|peer| (peer.uid(), peer.gid())));
        let holder = Holder::of(credentials, |uid| owners.contains(&uid) || daemon.names.knows(uid));
        let Some(place) = Place::take(&open, holder) else {
            refuse(stream, holder);
            continue;
        };
        let peer = Extension((credentials, place.clone()));
        let service = TowerToHyperService::new(router.clone().layer(peer));
        let connection = server.serve_connection(TokioIo::new(Connection::new(stream, place)), service);
        // How a connection ends concerns its client alone.
        tokio::spawn(async move { drop(connection.with_upgrades().await) });
    }
}

/// The socket's buffer is empty and has room for the answer. tokio has not polled the new socket, so it would not write.
fn refuse(stream: UnixStream, holder: Holder) {
    let _ = stream.into_std().and_then(|mut stream| stream.write(holder.refusal().as_bytes()));
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

    /// The answer to a connection beyond the limit.
    fn refusal(self) -> String {
        let detail = match self {
            Self::Strangers => "too many uids that were not seen before are connected: try again in a moment",
            Self::Root | Self::Account(_) => TOO_MANY,
        };
        let problem = ProblemDetails::from(Problem::new(Code::Unavailable, detail));
        // Plain data can always be serialized.
        let body = serde_json::to_string(&problem).unwrap_or_default();
        let head = format!("content-type: {PROBLEM_JSON}\r\nconnection: close\r\ncontent-length: {}", body.len());
        format!("HTTP/1.1 503 Service Unavailable\r\n{head}\r\n\r\n{body}")
    }
}

type Places = Arc<Mutex<HashMap<Holder, usize>>>;

/// One of a holder's connections. It ends when the last clone is dropped.
#[derive(Clone)]
pub(super) struct Place(Arc<Held>);

struct Held {
    open: Places,
    holder: Mutex<Holder>,
}

impl Place {
    fn take(open: &Places, holder: Holder) -> Option<Self> {
        if !count_up(&mut lock(open), holder) {
            return None;
        }
        Some(Self(Arc::new(Held { open: open.clone(), holder: Mutex::new(holder) })))
    }

    /// Moves a stranger's place to its account, which is known now: otherwise one account could hold all places of strangers
    /// for as long as its requests last.
    ///
    /// # Errors
    /// The account has too many connections.
    pub(super) fn move_to_account(&self, uid: u32) -> Result<(), Problem> {
        let (mut holder, mut counts) = (lock(&self.0.holder), lock(&self.0.open));
        if *holder == Holder::Strangers {
            if !count_up(&mut counts, Holder::Account(uid)) {
                return Err(Problem::new(Code::Unavailable, TOO_MANY));
            }
            count_down(&mut counts, Holder::Strangers);
            *holder = Holder::Account(uid);
        }
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let holder = *lock(&self.holder);
        count_down(&mut lock(&self.open), holder);
    }
}

/// Returns false if the holder has all its connections.
fn count_up(counts: &mut HashMap<Holder, usize>, holder: Holder) -> bool {
    let count = counts.entry(holder).or_default();
    let has_room = *count < CONNECTIONS_MAX || holder == Holder::Root;
    *count += usize::from(has_room);
    has_room
}

fn count_down(counts: &mut HashMap<Holder, usize>, holder: Holder) {
    let Some(count) = counts.get_mut(&holder) else { return };
    *count -= 1;
    if *count == 0 {
        counts.remove(&holder);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        strangers[0].move_to_account(2000).unwrap();
        assert!(take(3000).is_some(), "its place is free again");
        drop((places, other, roots, strangers));
        assert!(open.lock().unwrap().is_empty());
    }

    #[test]
    fn the_refusal_is_a_whole_answer() {
        for holder in [Holder::Account(1000), Holder::Strangers] {
            let text = holder.refusal();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head}");
            let details: ProblemDetails = serde_json::from_str(body).unwrap();
            assert_eq!((details.status, details.problem.code), (503, Code::Unavailable));
        }
        assert!(TOO_MANY.contains(&CONNECTIONS_MAX.to_string()));
    }
}
