//! `/v1/streams`

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use garret_api::runner::Stream;
use garret_api::{Code, ProblemDetails};
use hyper::StatusCode;

use super::{Peer, Refusal};
use crate::daemon::Daemon;
use crate::daemon::streams::End;

#[utoipa::path(
    get,
    path = "/v1/streams", operation_id = "list_streams",
    responses((
        status = 200,
        description = "The open streams to machines that the caller may see, the oldest first.",
        body = Vec<Stream>
    ))
)]
pub(super) async fn list(State(daemon): State<Arc<Daemon>>, peer: Peer) -> Json<Vec<Stream>> {
    Json(daemon.streams.list(|stream| peer.may(stream.uid)))
}

#[utoipa::path(
    delete,
    path = "/v1/streams/{id}", operation_id = "end_stream",
    params(("id" = String, Path, description = "The stream's id.")),
    responses(
        (status = 204, description = "It has ended; its process gets SIGHUP."),
        (status = 404, body = ProblemDetails)
    )
)]
pub(super) async fn end(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    match daemon.streams.end(&id, |stream| peer.may(stream.uid), End::Requested { by: peer.uid }).await {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Refusal::new(Code::NotFound, format!("there is no stream {id}: `garret streams` lists them"))),
    }
}
