//! `garret streams`

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use garret_api::client::Client;
use garret_api::runner::Stream;

use super::output;

/// List the open commands and terminals, the oldest first, or end one.
///
/// Each is a stream between a client and a machine. A machine is not paused while a stream to it is open. An administrator
/// sees the streams of all machines.
#[derive(Debug, Args)]
pub(super) struct Streams {
    #[command(subcommand)]
    command: Option<StreamsCommand>,
}

#[derive(Debug, Subcommand)]
enum StreamsCommand {
    /// End a stream. Its process gets SIGHUP.
    End {
        /// The stream's id.
        id: String,
    },
}

impl Streams {
    pub(super) async fn run(self, client: &Client, json: bool) -> anyhow::Result<u8> {
        if let Some(StreamsCommand::End { id }) = self.command {
            client.delete(&format!("/v1/streams/{id}")).await?;
            return Ok(0);
        }
        let streams: Vec<Stream> = client.get("/v1/streams").await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        match json {
            true => output::print_json(&streams)?,
            false => output::print(&render(&streams, now))?,
        }
        Ok(0)
    }
}

/// `now` is the time since 1970.
fn render(streams: &[Stream], now: Duration) -> String {
    let mut rows = vec![["ID", "KIND", "TO", "BY", "AGE", "SENT", "RECEIVED"].map(String::from).to_vec()];
    rows.extend(streams.iter().map(|stream| {
        vec![
            stream.id.clone(),
            output::wire_name(&stream.kind),
            stream.environment.clone().unwrap_or_else(|| format!("machine {}", stream.developer)),
            format!("uid {}", stream.opened_by),
            output::duration(now.saturating_sub(Duration::from_millis(stream.opened_ms)).as_secs()),
            size(stream.to_guest_bytes),
            size(stream.from_guest_bytes),
        ]
    }));
    output::table(&rows)
}

/// A number of bytes in its largest unit.
fn size(bytes: u64) -> String {
    match bytes {
        0..0x400 => format!("{bytes} B"),
        0x400..0x10_0000 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

#[cfg(test)]
mod tests {
    use garret_api::stream::StreamKind;

    use super::*;

    #[test]
    fn each_stream_is_a_line() {
        let stream = |id: &str, environment: Option<&str>, opened_ms, bytes| Stream {
            id: id.into(),
            kind: StreamKind::Exec,
            machine: "m1".parse().unwrap(),
            developer: "alice".into(),
            uid: 1000,
            environment: environment.map(String::from),
            opened_by: 0,
            opened_ms,
            to_guest_bytes: bytes,
            from_guest_bytes: bytes * 2000,
        };
        let streams = [stream("0a1b2c3d", None, 0, 1023), stream("00000001", Some("w-1"), 599_000, 1024)];
        assert_eq!(
            render(&streams, Duration::from_secs(600)),
            "ID        KIND  TO             BY     AGE     SENT    RECEIVED\n\
             0a1b2c3d  exec  machine alice  uid 0  10 min  1023 B  1 MiB\n\
             00000001  exec  w-1            uid 0  1 s     1 KiB   1 MiB\n"
        );
    }
}
