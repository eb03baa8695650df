//! Exec streams: passes the upgrade on to the agent, and keeps the stream in the registry while it is open.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use garret_api::stream::StreamKind;
use garret_api::{Code, PROBLEM_JSON};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderName};
use hyper::{StatusCode, upgrade};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::running::require_running;
use super::{Peer, Refusal};
use crate::daemon::Daemon;
use crate::daemon::memory::WakeGuard;
use crate::daemon::state::MachineRow;
use crate::daemon::streams::{End, NewStream, relay};

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

/// The agent's answer to a handshake.
enum Opened {
    Stream(hyper::Response<Incoming>, WakeGuard),
    Refused(Response),
}

/// Opens an exec stream to the machine's environment with this id, or to the guest itself. The machine is needed until
/// the stream ends.
pub(super) async fn exec(
    daemon: &Daemon,
    peer: Peer,
    machine: &MachineRow,
    environment: Option<String>,
    mut request: Request,
) -> Result<Response, Refusal> {
    require_running(machine)?;
    let path = environment.as_ref().map_or_else(|| "/v1/exec".into(), |id| format!("/v1/environments/{id}/exec"));
    let asked = handshake(&request, &path)?;
    let kind = StreamKind::Exec;
    daemon.check_serves(machine, kind)?;
    let new = NewStream {
        kind,
        machine: machine.id,
        developer: machine.developer.clone(),
        uid: machine.owner,
        environment,
        opened_by: peer.uid,
    };
    let stream = daemon.streams.open(new)?;
    let agent = daemon.agent(machine.id, DEADLINE);
    let opened = async {
        let needed = daemon.wake(machine).await;
        let answer = agent.forward(asked).await?;
        Ok::<_, Refusal>(if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            Opened::Stream(answer, needed)
        } else {
            Opened::Refused(refusal(answer).await)
        })
    };
    let (mut answer, needed) = tokio::select! {
        opened = opened => match opened? {
            Opened::Stream(answer, needed) => (answer, needed),
            Opened::Refused(response) => return Ok(response),
        },
        end = stream.end_requested() => return Err(Refusal::new(Code::Cancelled, end.to_string())),
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for name in HANDSHAKE {
        if let Some(value) = answer.headers().get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    let (client, guest) = (upgrade::on(&mut request), upgrade::on(&mut answer));
    tokio::spawn(async move {
        let _needed = needed;
        let end = match tokio::try_join!(client, guest) {
            Ok((client, guest)) => relay(TokioIo::new(client), TokioIo::new(guest), &stream).await,
            // One of them left before the answer to the handshake was sent.
            Err(_) => End::Client,
        };
        stream.finish(end);
    });
    Ok(response)
}

/// The client's handshake as a request to `path` of the agent.
fn handshake(request: &Request, path: &str) -> Result<hyper::Request<Full<hyper::body::Bytes>>, Refusal> {
    if !request.headers().contains_key(header::UPGRADE) {
        return Err(Refusal::new(Code::UpgradeRequired, "this is a WebSocket: ask for an upgrade"));
    }
    let mut asked = hyper::Request::builder().uri(path).header(header::HOST, "garret");
    for name in HANDSHAKE {
        if let Some(value) = request.headers().get(&name) {
            asked = asked.header(name, value);
        }
    }
    asked.body(Full::default()).map_err(|error| Refusal::new(Code::Invalid, error.to_string()))
}

/// The agent's answer to a handshake that it refuses.
async fn refusal(answer: hyper::Response<Incoming>) -> Response {
    let (parts, body) = answer.into_parts();
    let body = timeout(DEADLINE, Limited::new(body, REFUSAL_MAX).collect()).await;
    let body = body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = parts.status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(PROBLEM_JSON));
    response
}
