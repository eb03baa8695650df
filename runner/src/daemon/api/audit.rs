//! One line of the log for each request that changes something or enters a machine.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use garret_api::one_line;
use hyper::{Method, header};

use super::Credentials;

/// The target of the lines. The log has them whatever its filter is.
pub(crate) const TARGET: &str = "audit";

/// The service manager drops the lines of a service that logs too much (systemd: 10,000 in 30 s). No account should
/// have the lines of others dropped, so these are the most in one [`WINDOW`]: of one account that is let in …
const LINES_MAX: u32 = 500;
/// … and of all that is refused. An account has many subordinate uids, which can only be refused.
const REFUSED_MAX: u32 = 100;
const WINDOW: Duration = Duration::from_secs(10);

/// The key of a count: one uid, or all refused requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Count {
    Of(u32),
    Refused,
}

/// The lines of the present window.
#[derive(Clone, Default)]
pub(super) struct Audit(Arc<Mutex<HashMap<Count, (Instant, u32)>>>);

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
    let (method, path) = (request.method().clone(), one_line(request.uri().path()));
    let mut line = Line { audit, uid: peer.uid(), method, path, status: None };
    let response = next.run(request).await;
    line.status = Some(response.status().as_u16());
    response
}

fn is_recorded(request: &Request) -> bool {
    request.method() != Method::GET || request.headers().contains_key(header::UPGRADE)
}

/// Logs itself when dropped. A client may leave before the answer, and its request may have been carried out.
struct Line {
    audit: Audit,
    uid: Option<u32>,
    method: Method,
    path: String,
    /// `None`: the client left.
    status: Option<u16>,
}

impl Drop for Line {
    fn drop(&mut self) {
        let Self { audit, uid, method, path, status } = self;
        let refused = status.is_some_and(|status| status >= 400);
        let (count, most) = match uid {
            Some(uid) if !refused => (Count::Of(*uid), LINES_MAX),
            _ => (Count::Refused, REFUSED_MAX),
        };
        let before = audit.count(count, Instant::now());
        if before < most {
            tracing::info!(target: TARGET, uid, %method, path, status);
        } else if before == most {
            tracing::warn!(target: TARGET, uid, "more requests follow, which are not logged for some seconds");
        }
    }
}

impl Audit {
    /// Counts a line; returns how many there were before it in the present window.
    fn count(&self, count: Count, now: Instant) -> u32 {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.retain(|_, (since, _)| now.duration_since(*since) < WINDOW);
        let (_, lines) = counts.entry(count).or_insert((now, 0));
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
    fn each_window_counts_from_zero_and_refusals_use_up_no_account() {
        let (audit, start) = (Audit::default(), Instant::now());
        let line =
            |status| Line { audit: audit.clone(), uid: Some(1000), method: Method::PUT, path: "/".into(), status };
        for status in [Some(403), Some(404), Some(200), None] {
            drop(line(status));
        }
        assert_eq!((audit.count(Count::Of(1000), start), audit.count(Count::Refused, start)), (2, 2));
        assert_eq!(audit.count(Count::Of(1001), start), 0);
        assert_eq!(audit.count(Count::Of(1000), start + 2 * WINDOW), 0);
        assert_eq!(audit.0.lock().unwrap().len(), 1, "what has no line is forgotten");
    }
}
