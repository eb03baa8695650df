//! Detects a program that hangs by the time since its last line. The group's budget cannot do that: machines differ in
//! speed.

use std::cell::Cell;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Child;
use tokio::time::{Instant, sleep_until};

/// The longest time without a line. A line is printed for each test that ends and each crate that is compiled. Each
/// takes minutes at most, even on a machine three times slower than the budgets assume.
const SILENT_AT_MOST: Duration = Duration::from_secs(20 * 60);

/// Prints a program's output by lines until it ends. `None` if it hangs. Both streams must be piped.
///
/// # Errors
/// Waiting for the program's end fails.
pub(super) async fn follow(child: &mut Child) -> anyhow::Result<Option<std::process::ExitStatus>> {
    let (stdout, stderr) = (child.stdout.take().context("piped")?, child.stderr.take().context("piped")?);
    let heard = Heard::now();
    let ended = async { tokio::join!(child.wait(), heard.pass_on(stdout), heard.pass_on(stderr)).0 };
    tokio::select! {
        status = ended => Ok(Some(status?)),
        () = heard.silent(SILENT_AT_MOST) => {
            println!("no line for {} min: it hangs", SILENT_AT_MOST.as_secs() / 60);
            Ok(None)
        }
    }
}

/// The time of the last line.
struct Heard(Cell<Instant>);

impl Heard {
    fn now() -> Self {
        Self(Cell::new(Instant::now()))
    }

    async fn pass_on(&self, stream: impl AsyncRead + Unpin) {
        let mut lines = BufReader::new(stream).split(b'\n');
        while let Ok(Some(line)) = lines.next_segment().await {
            self.0.set(Instant::now());
            println!("{}", String::from_utf8_lossy(&line));
        }
    }

    /// Returns when no line has come for `limit`.
    async fn silent(&self, limit: Duration) {
        while self.0.get().elapsed() < limit {
            sleep_until(self.0.get() + limit).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn lines_prolong_the_silence_limit() {
        // A stall of this machine fails the test only if it is as long as this.
        let limit = Duration::from_secs(1);
        let (mut writer, reader) = tokio::io::duplex(64);
        let heard = Heard::now();
        let begun = Instant::now();
        let write = async {
            for _ in 0..30 {
                tokio::time::sleep(limit / 20).await;
                writer.write_all(b"line\n").await.unwrap();
            }
            // The stream stays open, so only the silence ends the wait.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = heard.silent(limit) => {}
            () = heard.pass_on(reader) => unreachable!("the stream is open"),
            () = write => unreachable!("it never ends"),
        }
        assert!(begun.elapsed() >= limit * 3 / 2 + limit, "{:?}", begun.elapsed());
    }
}
