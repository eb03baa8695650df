//! One line of the log for each request that changes something or enters a machine.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::Request;
use garret_api::one_line;
use hyper::{Method, StatusCode, header};

/// The target of the lines. The log has them whatever its filter is.
pub(crate) const TARGET: &str = "audit";

/// The service manager drops the lines of a service that logs too much (systemd: 10,000 in 30 s). No account should
/// have the lines of others dropped, so these are the most in one [`WINDOW`]: of one account that is let in …
const LINES_MAX: u32 = 500;
/// … and of all that is refused. One account may have many subordinate uids, which are refused.
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

fn is_recorded(request: &Request) -> bool {
    request.method() != Method::GET || request.headers().contains_key(header::UPGRADE)
}

/// Logs itself when dropped. A client may leave before the answer, and its request may have been carried out.
pub(super) struct Line {
    audit: Audit,
    uid: Option<u32>,
    method: String,
    path: String,
    /// Whether the peer was let in.
    admitted: bool,
    /// `None`: the client left.
    status: Option<u16>,
}

impl Line {
    /// The line of this request, if it has one.
    pub(super) fn of(audit: &Audit, request: &Request, uid: Option<u32>) -> Option<Self> {
        is_recorded(request).then(|| Self {
            audit: audit.clone(),
            uid,
            // Both are the client's words, and have its length.
            method: one_line(request.method().as_str()),
            path: one_line(request.uri().path()),
            admitted: false,
            status: None,
        })
    }

    pub(super) fn admit(&mut self) {
        self.admitted = true;
    }

    pub(super) fn end(mut self, status: StatusCode) {
        self.status = Some(status.as_u16());
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let Self { audit, uid, method, path, admitted, status } = self;
        let refused = !*admitted || status.is_some_and(|status| status >= 400);
        let (count, most) = match uid {
            Some(uid) if !refused => (Count::Of(*uid), LINES_MAX),
            _ => (Count::Refused, REFUSED_MAX),
        };
        let before = audit.count(count, Instant::now());
        if before < most {
            tracing::info!(target: TARGET, uid, method, path, status);
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

    fn line(audit: &Audit) -> Line {
        let request = Request::builder().method("PUT").uri("/").body(Body::empty()).unwrap();
        Line::of(audit, &request, Some(1000)).unwrap()
    }

    #[test]
    fn the_clients_words_are_clipped() {
        let long = "M".repeat(60_000);
        let request = Request::builder().method(long.as_str()).uri(format!("/{long}")).body(Body::empty()).unwrap();
        let line = Line::of(&Audit::default(), &request, None).unwrap();
        assert!(line.method.len() + line.path.len() < 10_000);
    }

    #[test]
    fn each_window_counts_from_zero_and_refusals_use_up_no_account() {
        let (audit, start) = (Audit::default(), Instant::now());
        for (admitted, status) in [(true, 403), (true, 404), (false, 403), (true, 200)] {
            let mut line = line(&audit);
            if admitted {
                line.admit();
            }
            line.end(StatusCode::from_u16(status).unwrap());
        }
        // Two clients that left before the answer. Only one of them was let in.
        line(&audit).admit();
        drop(line(&audit));
        assert_eq!((audit.count(Count::Of(1000), start), audit.count(Count::Refused, start)), (2, 4));
        assert_eq!(audit.count(Count::Of(1001), start), 0);
        assert_eq!(audit.count(Count::Of(1000), start + 2 * WINDOW), 0);
        assert_eq!(audit.0.lock().unwrap().len(), 1, "what has no line is forgotten");
    }
}
