//! Follows the daemon's events, across a restart of the daemon.

use std::time::Duration;

use garret_api::client::{Client, Error, Lines};
use garret_api::runner::Event;
use hyper::Method;
use tokio::time::{Instant, sleep};

/// How long a daemon that went away may take to come back: machines do not notice, and neither need their users.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);
/// A connection that lasted longer than this was a good one.
const STEADY: Duration = Duration::from_secs(5);

/// Follows `path` from the event after number `after`, until `seen` gives a value.
///
/// # Errors
/// The daemon refuses, or stays away.
pub async fn follow<T>(
    client: &Client,
    path: &str,
    after: u64,
    seen: impl FnMut(&Event) -> Option<T>,
) -> Result<T, Error> {
    follow_within(PATIENCE, client, path, after, seen).await
}

async fn follow_within<T>(
    patience: Duration,
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
                let (connected, before) = (Instant::now(), after);
                match drain(&mut lines, &mut after, &mut seen).await {
                    Ok(value) => return Ok(value),
                    Err(error) => {
                        // A connection that holds or brings something is none that only begins again and again.
                        if after > before || connected.elapsed() > STEADY {
                            lost_since = None;
                        }
                        error
                    }
                }
            }
            Err(error @ Error::Problem { .. }) => return Err(error),
            Err(error) => error,
        };
        if lost_since.get_or_insert_with(Instant::now).elapsed() > patience {
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    /// A daemon that answers each request with `body` and closes.
    fn daemon(folder: &std::path::Path, body: &'static str) -> Client {
        let socket = folder.join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{body}");
                stream.write_all(answer.as_bytes()).await.ok();
            }
        });
        Client::unix(socket)
    }

    #[tokio::test]
    async fn a_stream_that_is_never_understood_ends() {
        let folder = tempfile::tempdir().unwrap();
        let client = daemon(folder.path(), "{\"id\": \"a new kind of number\"}\n");
        let end = follow_within(PAUSE, &client, "/v1/events", 0, |_| None::<()>);
        assert!(matches!(end.await, Err(Error::Broken { .. })));
    }

    #[tokio::test]
    async fn an_unknown_event_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let client = daemon(
            folder.path(),
            "{\"id\": 1, \"at_ms\": 1, \"developer\": \"ann\", \"what\": {\"type\": \"port\"}}\n\
             {\"id\": 2, \"at_ms\": 1, \"developer\": \"ann\", \"what\": {\"type\": \"unknown\"}}\n",
        );
        let seen = follow(&client, "/v1/events", 0, |event| (event.id == 2).then_some(event.id)).await;
        assert_eq!(seen.unwrap(), 2);
    }
}
