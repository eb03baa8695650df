//! One line of the log for each request that changes something or enters a machine.

use axum::extract::{ConnectInfo, Request};
use axum::middleware::Next;
use axum::response::Response;
use hyper::{Method, header};

use super::Credentials;

/// Calls the handler and logs who asked for what, and the answer's status.
pub(super) async fn record(ConnectInfo(peer): ConnectInfo<Credentials>, request: Request, next: Next) -> Response {
    if !is_recorded(&request) {
        return next.run(request).await;
    }
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    let status = response.status().as_u16();
    tracing::info!(target: "audit", uid = peer.uid(), %method, path = %path.escape_debug(), status);
    response
}

fn is_recorded(request: &Request) -> bool {
    request.method() != Method::GET || request.headers().contains_key(header::UPGRADE)
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
}
