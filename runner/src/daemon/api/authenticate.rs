//! In front of every handler: who asks, and the line of the audit log.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use garret_api::{Code, Problem};

use super::Refusal;
use super::audit::{Audit, Line};
use super::identity::{Owner, check_owner};
use super::peer::{Credentials, Peer};
use crate::accounts::Unanswered;
use crate::daemon::Daemon;

/// Members of this group, and root, may use every machine without restriction.
const ADMINISTRATORS: &str = "garret";

/// Identifies the peer, which the handlers take from the request, and refuses those who have no business here before
/// their body is read.
pub(super) async fn authenticate(
    State((daemon, audit)): State<(Arc<Daemon>, Audit)>,
    Extension(credentials): Extension<Credentials>,
    mut request: Request,
    next: Next,
) -> Response {
    let mut line = Line::of(&audit, &request, credentials.uid());
    let response = match identify(&daemon, credentials).await {
        Ok(peer) => {
            if let Some(line) = &mut line {
                line.admit();
            }
            request.extensions_mut().insert(peer);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    };
    if let Some(line) = line {
        line.end(response.status());
    }
    response
}

/// # Errors
/// The peer may be another person than the owner of the uid's machine, or has neither an account nor a machine; or the
/// name service does not answer.
async fn identify(daemon: &Daemon, credentials: Credentials) -> Result<Peer, Refusal> {
    let Credentials(Some((uid, gid))) = credentials else {
        return Err(Problem::new(Code::Forbidden, "the connection's owner is unknown").into());
    };
    if uid == 0 {
        return Ok(Peer { uid, gid, administrator: true });
    }
    let owner = Owner::find(daemon, uid, gid).await?;
    let has_machine = check_owner(daemon, &owner).await?;
    let administrator = match &owner.account {
        Some(account) => daemon.names.is_member(account, ADMINISTRATORS).await.map_err(unavailable)?,
        // An account may have thousands of subordinate uids, and each would have limits of its own.
        None if !has_machine => {
            return Err(Refusal::new(Code::Forbidden, format!("uid {uid} has no account on this host")));
        }
        None => false,
    };
    Ok(Peer { uid, gid: owner.gid, administrator })
}

fn unavailable(error: Unanswered) -> Refusal {
    Refusal::new(Code::Unavailable, error.to_string())
}
