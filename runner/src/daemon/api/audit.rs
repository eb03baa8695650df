//! One line of the log for each request that changes something or enters a machine.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use hyper::{Method, header};

use super::Credentials;

/// Lines of one account in one [`WINDOW`]. The service manager drops the lines of a service that logs too much, and one
/// account must not have the lines of others dropped.
const LINES_MAX: u32 = 100;
const WINDOW: Duration = Duration::from_secs(10);

/// What each account has logged in the present window.
#[derive(Clone, Default)]
pub(super) struct Audit(Arc<Mutex<HashMap<u32, (Instant, u32)>>>);

/// Calls the handler and logs who asked for what, and the answer's status.
pub(super) async fn record(
    State(audit): State<Audit>,
    ConnectInfo(peer): ConnectInfo<Credentials>,
    request: Request,
    next: Next,
) -> Response {
    if !is_recorded(&request) {
        return next.run(request).await;
    }
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    let (uid, status) = (peer.uid(), response.status().as_u16());
    match audit.count(uid.unwrap_or(u32::MAX), Instant::now()) {
        ..LINES_MAX => tracing::info!(target: "audit", uid, %method, path = %path.escape_debug(), status),
        LINES_MAX => {
            tracing::warn!(target: "audit", uid, "more requests follow, which are not logged for some seconds")
        }
        _ => {}
    }
    response
}

fn is_recorded(request: &Request) -> bool {
    request.method() != Method::GET || request.headers().contains_key(header::UPGRADE)
}

impl Audit {
    /// Counts a line of this account; returns how many it had in the present window.
    fn count(&self, uid: u32, now: Instant) -> u32 {
        let mut accounts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        accounts.retain(|_, (since, _)| now.duration_since(*since) < WINDOW);
        let (_, lines) = accounts.entry(uid).or_insert((now, 0));
        *lines = lines.saturating_add(1);
        *lines - 1
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn changes_and_terminals_are_recorded_and_reading_is_not() {
        for (method, upgrade, recorded) in [("GET", false, false), ("GET", true, true), ("PUT", false, true)] {
            let mut request = Request::builder().method(method).uri("/v1/machines/alice");
            if upgrade {
                request = request.header(header::UPGRADE, "websocket");
            }
            assert_eq!(is_recorded(&request.body(Body::empty()).unwrap()), recorded, "{method} {upgrade}");
        }
    }

    #[test]
    fn each_window_counts_an_accounts_lines_from_zero() {
        let (audit, start) = (Audit::default(), Instant::now());
        assert_eq!([0, 1, 2].map(|_| audit.count(1000, start)), [0, 1, 2]);
        assert_eq!(audit.count(1001, start), 0);
        assert_eq!(audit.count(1000, start + WINDOW), 0);
        assert_eq!(audit.0.lock().unwrap().len(), 1, "an account without lines is forgotten");
    }
}
