//! Parses a request's JSON body and query; rejects invalid ones with a one-line error.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use hyper::http::request::Parts;
use serde::de::DeserializeOwned;

use super::Refusal;

/// A JSON body.
pub(super) struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let bytes = Bytes::from_request(request, state).await.map_err(|error| Refusal::invalid(error.to_string()))?;
        serde_json::from_slice(&bytes).map(Body).map_err(|error| Refusal::invalid(format!("the body: {error}")))
    }
}

/// A query.
pub(super) struct Parameters<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(query)| Parameters(query))
            .map_err(|error| Refusal::invalid(error.to_string().replace('\n', " ")))
    }
}
