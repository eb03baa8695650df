//! Exec streams: passes the upgrade on to the agent, then copies bytes in both directions.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use garret_api::client::Client;
use garret_api::{Code, PROBLEM_JSON};
use http_body_util::{BodyExt, Full, Limited};
use hyper::StatusCode;
use hyper::header::{self, HeaderName};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

use super::Refusal;
use crate::daemon::memory::WakeGuard;

/// How long the agent may take to start the stream.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);
/// The most of an error answer's body that is passed on, in bytes.
const REFUSAL_MAX: usize = 64 * 1024;

/// The headers of a WebSocket handshake (RFC 6455 §4).
const HANDSHAKE: [HeaderName; 6] = [
    header::CONNECTION,
    header::UPGRADE,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::SEC_WEBSOCKET_ACCEPT,
];

/// Passes the request on to `path` of the agent. The machine is needed until the stream ends. The stream's content is
/// not parsed: its two ends agree on it.
pub(super) async fn forward_upgrade(
    agent: &Client,
    path: &str,
    mut request: Request,
    needed: WakeGuard,
) -> Result<Response, Refusal> {
    if !request.headers().contains_key(header::UPGRADE) {
        return Err(Refusal::new(Code::UpgradeRequired, "this is a WebSocket: ask for an upgrade"));
    }
    let mut asked = hyper::Request::builder().uri(path).header(header::HOST, "garret");
    for name in HANDSHAKE {
        if let Some(value) = request.headers().get(&name) {
            asked = asked.header(name, value);
        }
    }
    let asked = asked.body(Full::default()).map_err(|error| Refusal::new(Code::Invalid, error.to_string()))?;
    let mut answer = agent.forward(asked).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, REFUSAL_MAX).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = parts.status;
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(PROBLEM_JSON));
        return Ok(response);
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for name in HANDSHAKE {
        if let Some(value) = answer.headers().get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    let (ours, theirs) = (hyper::upgrade::on(&mut request), hyper::upgrade::on(&mut answer));
    tokio::spawn(async move {
        let _needed = needed;
        let (Ok(ours), Ok(theirs)) = tokio::join!(ours, theirs) else { return };
        // Either side may close or disappear; both end the stream.
        let _ = copy_bidirectional(&mut TokioIo::new(ours), &mut TokioIo::new(theirs)).await;
    });
    Ok(response)
}
