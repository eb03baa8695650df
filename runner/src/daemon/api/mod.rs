//! The host API on the daemon's Unix socket.

pub(super) mod audit;
mod authenticate;
mod connections;
mod environments;
mod events;
mod host;
mod identity;
mod machines;
mod metrics;
#[cfg(test)]
mod openapi;
mod operations;
mod peer;
mod proxy;
mod running;
mod streams;
mod target;
#[cfg(test)]
mod tests;
mod top;

use garret_api::Code;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{delete, get};

pub(super) use connections::{HEAD_TIME, serve};
use garret_http::{Refusal, no_such_method};
pub(super) use peer::Peer;

use super::Daemon;

/// The largest body of a request, in bytes. An environment's variables are the largest part of one.
const BODY_MAX: usize = 512 * 1024;

/// The router of the whole API.
fn router(daemon: Arc<Daemon>) -> Router {
    Router::new()
        .route("/v1/host", get(host::show))
        .route("/v1/top", get(top::show))
        .route("/metrics", get(metrics::of_all))
        .route("/v1/machines", get(machines::list))
        .route("/v1/machines/{machine}", get(machines::show).put(machines::put).delete(machines::remove))
        .route("/v1/machines/{machine}/events", get(events::of_machine))
        .route("/v1/machines/{machine}/log", get(machines::log))
        .route("/v1/machines/{machine}/metrics", get(metrics::of_machine))
        .route("/v1/machines/{machine}/exec", get(machines::exec))
        .route("/v1/environments", get(environments::list))
        .route("/v1/environments/{id}", get(environments::show).put(environments::put).delete(environments::remove))
        .route("/v1/environments/{id}/events", get(events::of_environment))
        .route(
            "/v1/environments/{id}/local-env",
            get(environments::show_local_env).delete(environments::clear_local_env),
        )
        .route("/v1/environments/{id}/log", get(environments::log))
        .route("/v1/environments/{id}/exec", get(environments::exec))
        .route("/v1/operations", get(operations::list))
        .route("/v1/operations/{id}", get(operations::show))
        .route("/v1/streams", get(streams::list))
        .route("/v1/streams/{id}", delete(streams::end))
        .route("/v1/events", get(events::of_all))
        .fallback(async || Refusal::new(Code::NotFound, "there is no such path: see the API's description"))
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(from_fn_with_state((daemon.clone(), audit::Audit::default()), authenticate::authenticate))
        .with_state(daemon)
}
