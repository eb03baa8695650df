//! `/v1/events`: past and current events.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use garret_api::ProblemDetails;
use garret_api::runner::Event;
use hyper::header;
use serde::Deserialize;
use tokio::sync::watch;
use utoipa::IntoParams;

use super::target::find;
use super::{Peer, Refusal, environments};
use crate::daemon::Daemon;
use crate::daemon::state::{Scope, StoreError, events, scope_end};
use garret_http::Parameters;

/// The query parameters of a request for events.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EventParameters {
    /// Return only events with a larger number.
    #[serde(default)]
    after: u64,
    /// Continue with new events as they happen.
    #[serde(default)]
    follow: bool,
}

#[utoipa::path(
    get,
    path = "/v1/environments/{id}/events", operation_id = "list_environment_events",
    params(("id" = String, Path, description = "The environment's id."), EventParameters),
    responses(
        (status = 200, description = "Events of this environment, one per line. Events of an earlier environment with the same id are not included.",
            body = Event, content_type = "application/x-ndjson"),
        (status = 404, body = ProblemDetails)
    )
)]
pub(super) async fn of_environment(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(id): Path<String>,
    Parameters(parameters): Parameters<EventParameters>,
) -> Result<Response, Refusal> {
    let (row, _) = environments::find(&daemon, peer, &id).await?;
    let (machine, id) = (row.machine, row.id.clone());
    let removal = daemon.read(move |db| events::last_removal(db, machine, &id)).await?;
    let parameters = EventParameters { after: parameters.after.max(removal), ..parameters };
    Ok(answer(daemon, Scope::Environment(row.machine, row.id), parameters, true))
}

#[utoipa::path(
    get,
    path = "/v1/machines/{machine}/events", operation_id = "list_machine_events",
    params(
        ("machine" = String, Path, description = "The machine's id, or its developer's account name or uid."),
        EventParameters
    ),
    responses(
        (status = 200, description = "Events of the machine and its environments, one per line.", body = Event,
            content_type = "application/x-ndjson"),
        (status = 404, body = ProblemDetails)
    )
)]
pub(super) async fn of_machine(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Path(name): Path<String>,
    Parameters(parameters): Parameters<EventParameters>,
) -> Result<Response, Refusal> {
    let machine = find(&daemon, peer, &name).await?;
    Ok(answer(daemon, Scope::Machine(machine.id), parameters, true))
}

#[utoipa::path(
    get,
    path = "/v1/events", operation_id = "list_events",
    params(EventParameters),
    responses((status = 200, description = "All events that the caller may see, one per line.", body = Event,
        content_type = "application/x-ndjson"))
)]
pub(super) async fn of_all(
    State(daemon): State<Arc<Daemon>>,
    peer: Peer,
    Parameters(parameters): Parameters<EventParameters>,
) -> Result<Response, Refusal> {
    Ok(answer(daemon, peer.scope(), parameters, false))
}

struct Follower {
    daemon: Arc<Daemon>,
    changes: watch::Receiver<u64>,
    scope: Scope,
    parameters: EventParameters,
    /// The answer ends when its machine or environment is gone.
    ends: bool,
}

/// Reads one page at a time from the state, woken by changes. A slow reader misses nothing, and nothing is buffered for
/// it.
fn answer(daemon: Arc<Daemon>, scope: Scope, parameters: EventParameters, ends: bool) -> Response {
    let changes = daemon.changes.subscribe();
    let follower = Follower { daemon, changes, scope, parameters, ends };
    let pages = stream::try_unfold(follower, async |mut follower| {
        Ok::<_, StoreError>(follower.page().await?.map(|page| (page, follower)))
    });
    ([(header::CONTENT_TYPE, garret_http::NDJSON)], Body::from_stream(pages)).into_response()
}

impl Follower {
    async fn page(&mut self) -> Result<Option<String>, StoreError> {
        loop {
            self.changes.borrow_and_update();
            let (after, scope) = (self.parameters.after, self.scope.clone());
            let (page, over) = self
                .daemon
                .read(move |db| Ok((events::after(db, after, &scope)?, scope_end::is_over(db, &scope)?)))
                .await?;
            if let Some(last) = page.last() {
                self.parameters.after = last.id;
                return Ok(Some(page.iter().map(line).collect()));
            }
            if (over && self.ends) || !self.parameters.follow || self.changes.changed().await.is_err() {
                return Ok(None);
            }
        }
    }
}

/// One line of JSON. Serializing an event cannot fail.
fn line(event: &Event) -> String {
    serde_json::to_string(event).map(|text| text + "\n").unwrap_or_default()
}
