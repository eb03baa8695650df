//! Parses a request's JSON body and query.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::IntoResponse;
use garret_api::Code;
use serde::de::DeserializeOwned;

use crate::Refusal;

/// A JSON body. The server bounds its length (`DefaultBodyLimit`).
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            let detail = rejection.body_text();
            match rejection.into_response().status() {
                StatusCode::PAYLOAD_TOO_LARGE => Refusal::new(Code::TooLarge, detail),
                _ => Refusal::new(Code::Invalid, detail),
            }
        })?;
        let parsed = serde_json::from_slice(&bytes).map(Body);
        parsed.map_err(|error| Refusal::new(Code::Invalid, format!("the body: {error}")))
    }
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
