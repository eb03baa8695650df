//! A problem as an answer.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use garret_api::{Code, PROBLEM_JSON, Problem, ProblemDetails};

/// The error of a handler.
#[derive(Debug)]
pub struct Refusal(pub Problem);

impl Refusal {
    /// Its code decides the answer's status.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self(Problem::new(code, detail))
    }
}

impl<E: Into<Problem>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let details = ProblemDetails::from(self.0);
        let status = StatusCode::from_u16(details.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // Plain data can always be serialized.
        let body = serde_json::to_vec(&details).unwrap_or_default();
        (status, [(header::CONTENT_TYPE, PROBLEM_JSON)], body).into_response()
    }
}

/// The answer to a method that a path does not have.
pub async fn no_such_method() -> Refusal {
    Refusal::new(Code::MethodNotAllowed, "this path has no such method")
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    #[tokio::test]
    async fn a_refusal_has_the_status_of_its_code() {
        let response = Refusal::new(Code::NoMemory, "the host has 2 GiB").into_response();
        assert_eq!(response.status(), StatusCode::CONFLICT);
        assert_eq!(response.headers()[header::CONTENT_TYPE], PROBLEM_JSON);
        let body = to_bytes(response.into_body(), 1000).await.unwrap();
        assert_eq!(body, r#"{"status":409,"code":"no-memory","detail":"the host has 2 GiB"}"#);
    }
}
