//! Follows the daemon's events, across a restart of the daemon.

use std::time::Duration;

use garret_api::client::{Client, Error, Lines};
use garret_api::runner::Event;
use hyper::Method;
use tokio::time::{Instant, sleep};

/// How long a daemon that went away may take to come back: machines do not notice, and neither need their users.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);

/// Follows `path` from the event after number `after`, until `seen` gives a value.
///
/// # Errors
/// The daemon refuses, or stays away.
pub async fn follow<T>(
    client: &Client,
    path: &str,
    mut after: u64,
    mut seen: impl FnMut(&Event) -> Option<T>,
) -> Result<T, Error> {
    let mut lost_since: Option<Instant> = None;
    loop {
        let url = format!("{path}?after={after}&follow=true");
        let error = match client.lines::<Event, ()>(Method::GET, &url, None).await {
            Ok(mut lines) => {
                lost_since = None;
                match drain(&mut lines, &mut after, &mut seen).await {
                    Ok(value) => return Ok(value),
                    Err(error) => error,
                }
            }
            Err(error @ Error::Problem { .. }) => return Err(error),
            Err(error) => error,
        };
        if lost_since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
            return Err(error);
        }
        sleep(PAUSE).await;
    }
}

async fn drain<T>(
    lines: &mut Lines<Event>,
    after: &mut u64,
    seen: &mut impl FnMut(&Event) -> Option<T>,
) -> Result<T, Error> {
    while let Some(event) = lines.next().await? {
        *after = event.id;
        if let Some(value) = seen(&event) {
            return Ok(value);
        }
    }
    Err(Error::Broken { target: "the daemon".into(), detail: "it ended".into() })
}
