//! Parses a request's JSON body and query.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::IntoResponse;
use garret_api::Code;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::Refusal;

/// The time for a body to arrive. Until then the server keeps what has arrived.
const BODY_TIME: Duration = Duration::from_secs(30);

/// A JSON body. The server bounds its length (`DefaultBodyLimit`).
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let bytes = read(request, state, BODY_TIME).await?;
        let parsed = serde_json::from_slice(&bytes).map(Body);
        parsed.map_err(|error| Refusal::new(Code::Invalid, format!("the body: {error}")))
    }
}

async fn read<S: Send + Sync>(request: Request, state: &S, time: Duration) -> Result<Bytes, Refusal> {
    let late = |_| Refusal::new(Code::Invalid, format!("the body did not arrive within {} s", time.as_secs_f64()));
    timeout(time, Bytes::from_request(request, state)).await.map_err(late)?.map_err(|rejection| {
        let detail = rejection.body_text();
        match rejection.into_response().status() {
            StatusCode::PAYLOAD_TOO_LARGE => Refusal::new(Code::TooLarge, detail),
            _ => Refusal::new(Code::Invalid, detail),
        }
    })
}

/// A query.
pub struct Parameters<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let parsed = Query::try_from_uri(&parts.uri).map(|Query(query)| Parameters(query));
        parsed.map_err(|error| Refusal::new(Code::Invalid, error.to_string().replace('\n', " ")))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{StreamExt, stream};

    use super::*;

    #[tokio::test]
    async fn a_body_that_stalls_is_refused() {
        let first = stream::once(async { Ok::<_, Infallible>(Bytes::from("{")) });
        let stalled = axum::body::Body::from_stream(first.chain(stream::pending()));
        let refusal = read(Request::new(stalled), &(), Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(refusal.0.detail, "the body did not arrive within 0.05 s");
    }
}
