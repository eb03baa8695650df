//! Waits for a machine or an environment to reach a state, even across a restart of the daemon.
//!
//! Events only say when to read the object and what to display; the object itself decides. So a wait also ends when
//! another client changes the desired state or removes the object, or when an event was missed.

use std::time::Duration;

use garret_api::agent::Progress;
use garret_api::client::{Client, Error};
use garret_api::runner::{Event, EventKind};
use hyper::Method;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

/// How long a daemon may be away: machines continue without it, so their users should not notice a restart.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);
/// The object is read when no event has arrived for this long, at first and later.
const FIRST_READ_AFTER: Duration = Duration::from_millis(200);
const READ_AFTER: Duration = Duration::from_secs(5);

/// Waits until `judge` returns a value for the object at `path` (`None`: the object is gone), and passes the events
/// after number `after` to `seen`.
///
/// # Errors
/// The daemon rejects the request, or does not come back.
pub(super) async fn follow<O: DeserializeOwned, T>(
    client: &Client,
    path: &str,
    mut after: u64,
    mut seen: impl FnMut(&Event),
    judge: impl Fn(&O) -> Option<T>,
) -> Result<Option<T>, Error> {
    let mut lost_since: Option<Instant> = None;
    loop {
        let error = match watch(client, path, &mut after, &mut lost_since, &mut seen, &judge).await {
            Ok(value) => return Ok(Some(value)),
            Err(error) if error.status() == Some(404) => return Ok(None),
            Err(error @ Error::Problem { .. }) => return Err(error),
            Err(error) => error,
        };
        if lost_since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
            return Err(error);
        }
        sleep(PAUSE).await;
    }
}

/// Follows one connection. What it learns is stored in `after` and `lost_since`.
async fn watch<O: DeserializeOwned, T>(
    client: &Client,
    path: &str,
    after: &mut u64,
    lost_since: &mut Option<Instant>,
    seen: &mut impl FnMut(&Event),
    judge: &impl Fn(&O) -> Option<T>,
) -> Result<T, Error> {
    let url = format!("{path}/events?after={after}&follow=true");
    let mut lines = client.lines::<Value, ()>(Method::GET, &url, None).await?;
    let mut quiet = FIRST_READ_AFTER;
    loop {
        let must_read = match timeout(quiet, lines.next()).await {
            Ok(Ok(Some(line))) => show(line, after, seen),
            Ok(Ok(None)) => return Err(Error::Broken { target: "the daemon".into(), detail: "it ended".into() }),
            Ok(Err(error)) => return Err(error),
            Err(_) => true,
        };
        if must_read {
            quiet = READ_AFTER;
            let object = client.get(path).await?;
            *lost_since = None;
            if let Some(value) = judge(&object) {
                return Ok(value);
            }
        }
    }
}

/// Passes on a line that is an event; returns whether the object must be read. A newer daemon's events may be unknown.
fn show(line: Value, after: &mut u64, seen: &mut impl FnMut(&Event)) -> bool {
    *after = line.get("id").and_then(Value::as_u64).unwrap_or(*after);
    match serde_json::from_value::<Event>(line) {
        Ok(event) => {
            seen(&event);
            is_state_change(&event.what)
        }
        Err(_) => true,
    }
}

/// Whether an event means that an object has changed its state.
fn is_state_change(what: &EventKind) -> bool {
    match what {
        EventKind::Environment { progress, .. } => matches!(progress, Progress::Ready { .. } | Progress::Failed { .. }),
        // An unknown event may mean anything.
        EventKind::Machine { .. } | EventKind::Stopped { .. } | EventKind::Removed { .. } | EventKind::Unknown => true,
        EventKind::Squeeze { .. } | EventKind::Problem { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use garret_api::runner::MachinePhase;
    use serde_json::json;

    use super::*;

    #[test]
    fn only_changes_and_unknown_events_need_a_read() {
        let event = |what: Value| json!({"id": 7, "at_ms": 1, "machine": "m1", "developer": "a", "what": what});
        let step = |progress: Value| event(json!({"type": "environment", "generation": 1, "progress": progress}));
        for (line, must_read, shown) in [
            (event(json!({"type": "machine", "phase": "stopped", "reason": "x"})), true, true),
            (event(json!({"type": "stopped", "generation": 1})), true, true),
            (event(json!({"type": "removed", "generation": 1})), true, true),
            (step(json!({"kind": "started", "step": "pull image"})), false, true),
            (step(json!({"kind": "failed", "step": "x", "problem": {"code": "cancelled", "detail": "y"}})), true, true),
            (event(json!({"type": "invented", "x": 1})), true, true),
            (json!({"id": 7, "what": 3}), true, false),
        ] {
            let (mut after, mut count) = (3, 0);
            assert_eq!(show(line.clone(), &mut after, &mut |_| count += 1), must_read, "{line}");
            assert_eq!((after, count == 1), (7, shown), "{line}");
        }
        assert!(is_state_change(&EventKind::Machine { phase: MachinePhase::Running, reason: String::new() }));
    }
}
