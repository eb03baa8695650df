//! Runs a process to its end, without input, for its output.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use garret_api::Problem;
use garret_api::stream::Outcome;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::unix::pipe;
use tokio::time::{Instant, timeout_at};

use super::running::{Handle, Running};
use super::{Place, ProcessSpec, container, spawn};

/// How long to read the remaining output in the pipes after the process has ended. Children that it leaves behind may
/// hold the pipes open forever.
const LINGER: Duration = Duration::from_millis(500);

/// Runs `spec` to its end with an empty standard input. `output` receives both output streams as they are printed.
/// Dropping the future sends a hangup to the process.
pub(crate) async fn run(spec: &ProcessSpec, mut output: impl FnMut(&[u8])) -> Result<Outcome, Problem> {
    let running = match &spec.place {
        Place::Guest => spawn::spawn(spec).await?,
        Place::Container { id } => container::spawn(id, spec).await?,
    };
    let Running { stdin, outputs, handle, mut child } = running;
    drop(stdin);
    let mut hang_up = HangUp(Some(handle));
    let mut outputs: Vec<_> = outputs.into_iter().map(|(_, output)| output).collect();
    let mut buffer = vec![0; 16 * 1024];
    let outcome = loop {
        tokio::select! {
            biased;
            length = read_any(&mut outputs, &mut buffer), if !outputs.is_empty() => output(&buffer[..length]),
            outcome = child.wait() => break outcome,
        }
    };
    hang_up.0 = None;
    let end = Instant::now() + LINGER;
    while !outputs.is_empty() {
        match timeout_at(end, read_any(&mut outputs, &mut buffer)).await {
            Ok(length) => output(&buffer[..length]),
            Err(_) => break,
        }
    }
    Ok(outcome)
}

/// Reads from any stream that has data. At the end of a stream, removes it and returns 0.
async fn read_any(outputs: &mut Vec<pipe::Receiver>, buffer: &mut [u8]) -> usize {
    poll_fn(|context| poll_any(outputs, buffer, context)).await
}

fn poll_any(outputs: &mut Vec<pipe::Receiver>, buffer: &mut [u8], context: &mut Context<'_>) -> Poll<usize> {
    for index in 0..outputs.len() {
        let mut into = ReadBuf::new(buffer);
        if let Poll::Ready(read) = Pin::new(&mut outputs[index]).poll_read(context, &mut into) {
            let length = into.filled().len();
            if read.is_err() || length == 0 {
                outputs.swap_remove(index);
            }
            return Poll::Ready(length);
        }
    }
    Poll::Pending
}

/// Sends a hangup to the process on drop, because no caller waits for it any more.
struct HangUp(Option<Handle>);

impl Drop for HangUp {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.hang_up();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::users::Credentials;

    async fn shell(line: &str) -> (Outcome, String) {
        let spec = ProcessSpec {
            place: Place::Guest,
            args: vec!["/bin/sh".into(), "-c".into(), line.into()],
            env: BTreeMap::from([("PATH".into(), "/usr/bin:/bin".into())]),
            cwd: "/".into(),
            credentials: Credentials::default(),
            terminal: None,
        };
        let mut text = Vec::new();
        let outcome = run(&spec, |chunk| text.extend_from_slice(chunk)).await.unwrap();
        (outcome, String::from_utf8(text).unwrap())
    }

    #[tokio::test]
    async fn output_of_both_streams_and_the_status() {
        let (outcome, text) = shell("echo out; echo err >&2; cat; exit 7").await;
        assert_eq!(outcome, Outcome::Exited(7));
        assert!(text.contains("out\n") && text.contains("err\n"), "{text:?}");
    }

    #[tokio::test]
    async fn a_child_left_behind_does_not_hold_it_up() {
        let (outcome, text) = shell("sleep 1000 & echo $!").await;
        assert_eq!(outcome, Outcome::Exited(0));
        let pid = rustix::process::Pid::from_raw(text.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }

    #[tokio::test]
    async fn much_output_comes_whole() {
        let (outcome, text) = shell("head -c 3000000 /dev/zero | tr '\\0' x").await;
        assert_eq!((outcome, text.len()), (Outcome::Exited(0), 3_000_000));
    }
}
