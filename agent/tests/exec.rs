//! The real server on a Unix socket: commands and terminals in the guest (here: this machine) over WebSocket.

mod common;

use garret_api::Code;
use std::time::Duration;

use common::{Session, request};
use futures_util::{SinkExt, StreamExt};
use garret_api::agent::ExecRequest;
use garret_api::stream::{Control, FRAME_MAX, Outcome, STDERR, STDIN, STDIN_WINDOW, STDOUT, WindowSize};
use nix::sys::signal::{SigHandler, Signal, signal};
use tokio_tungstenite::tungstenite::Message;

const SIZE: Option<WindowSize> = Some(WindowSize { rows: 33, columns: 111 });

fn terminal(command: &[&str]) -> ExecRequest {
    ExecRequest { terminal: SIZE, ..request(command) }
}

#[tokio::test]
async fn streams_are_apart_and_the_status_arrives() {
    let mut session = Session::open(request(&["sh", "-c", "printf out; printf err >&2; exit 7"])).await;
    let end = session.end().await;
    assert_eq!((end.stdout.as_slice(), end.stderr.as_slice()), (&b"out"[..], &b"err"[..]));
    assert_eq!(end.outcome, Outcome::Exited(7));
}

#[tokio::test]
#[allow(unsafe_code, reason = "setting how a signal is handled has no safe wrapper")]
async fn a_process_heeds_the_signals_that_the_agent_ignores() {
    // SAFETY: ignoring a signal runs no code, and no process sends this one.
    unsafe { signal(Signal::SIGUSR2, SigHandler::SigIgn) }.unwrap();
    let mut session = Session::open(request(&["grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"])).await;
    let end = session.end().await;
    let text = String::from_utf8(end.stdout).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    for line in text.lines() {
        let mask = u64::from_str_radix(line.split_once(":\t").unwrap().1, 16).unwrap();
        // The C library keeps signal 32 and the one after to itself.
        assert_eq!(mask & 0x7fff_ffff, 0, "{line}");
    }
}

#[tokio::test]
async fn megabytes_of_bytes_pass_both_ways_unchanged() {
    let data: Vec<u8> = (0..5_000_003u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut session = Session::open(request(&["cat"])).await;
    let (mut sink, source) = session.split();
    let send = async {
        for chunk in data.chunks(FRAME_MAX - 1) {
            let mut frame = vec![STDIN];
            frame.extend_from_slice(chunk);
            sink.send(Message::binary(frame)).await.unwrap();
        }
        sink.send(common::control(&Control::CloseStdin)).await.unwrap();
    };
    let (end, ()) = tokio::join!(common::collect(source), send);
    assert_eq!(end.stdout.len(), data.len());
    assert!(end.stdout == data, "the bytes are not the same");
    assert_eq!(end.outcome, Outcome::Exited(0));
}

#[tokio::test]
async fn a_slow_reader_stops_the_process_and_loses_nothing() {
    // `written` is printed only after everything is written; the checksum covers everything.
    let command = "dd if=/dev/zero bs=65536 count=256 2>/dev/null; echo written >&2";
    let mut session = Session::open(request(&["sh", "-c", command])).await;
    // Nothing is read here until the writer blocks: its counter of written bytes does not change any more.
    let pid = common::child_named("dd").await;
    let written = common::settled(|| common::written_bytes(pid)).await;
    assert!(written < 8 << 20, "{written} bytes were buffered for a client that does not read");
    let end = session.end().await;
    assert_eq!((end.stdout.len(), end.stderr.as_slice()), (16 << 20, &b"written\n"[..]));
}

#[tokio::test]
async fn a_process_that_reads_nothing_can_still_be_signaled() {
    let mut session = Session::open(request(&["sleep", "1000"])).await;
    let mut frame = vec![STDIN];
    frame.resize(FRAME_MAX, 0);
    for _ in 0..8 {
        session.send(Message::binary(frame.clone())).await;
    }
    session.control(Control::Signal(15)).await;
    assert_eq!(session.end().await.outcome, Outcome::Signaled(15));
}

#[tokio::test]
async fn a_signal_overtakes_unread_input() {
    let mut session = Session::open_with_credits(request(&["sh", "-c", "echo ready; exec sleep 1000"])).await;
    session.await_output("ready").await;
    // The whole window is more than the pipe holds.
    for _ in 0..STDIN_WINDOW {
        session.send(Message::binary(vec![STDIN; FRAME_MAX])).await;
    }
    session.control(Control::Signal(2)).await;
    assert_eq!(session.end().await.outcome, Outcome::Signaled(2));
}

#[tokio::test]
async fn each_frame_that_is_taken_is_granted_again() {
    let mut session = Session::open_with_credits(request(&["cat"])).await;
    for _ in 0..STDIN_WINDOW {
        session.send(Message::binary(b"\0x".to_vec())).await;
    }
    session.await_output(&"x".repeat(STDIN_WINDOW as usize)).await;
    session.control(Control::CloseStdin).await;
    assert_eq!(session.end().await.credit, STDIN_WINDOW);
}

#[tokio::test]
async fn a_client_beyond_its_grant_is_hung_up() {
    let folder = tempfile::tempdir().unwrap();
    let pid_file = folder.path().join("pid");
    let command = format!("echo $$ > {}; echo ready; exec sleep 1000", pid_file.display());
    let mut session = Session::open_with_credits(request(&["sh", "-c", &command])).await;
    session.await_output("ready").await;
    let (mut sink, _source) = session.split();
    // The server closes the connection after too many frames.
    while sink.send(Message::binary(vec![STDIN; FRAME_MAX])).await.is_ok() {}
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    common::eventually(|| !std::path::Path::new("/proc").join(pid.trim()).exists()).await;
}

#[tokio::test]
async fn signals_reach_the_whole_process_group() {
    let command = "trap 'echo caught; exit 3' INT; echo ready; sleep 1000 & wait";
    let mut session = Session::open(request(&["sh", "-c", command])).await;
    session.await_output("ready").await;
    session.control(Control::Signal(2)).await;
    let end = session.end().await;
    assert_eq!((end.stdout.as_slice(), end.outcome), (&b"ready\ncaught\n"[..], Outcome::Exited(3)));
}

#[tokio::test]
async fn a_terminal_has_a_size_and_can_be_resized() {
    let command = "stty size; trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.01; done";
    let mut session = Session::open(terminal(&["sh", "-c", command])).await;
    session.await_output("ready").await;
    session.control(Control::Resize(WindowSize { rows: 50, columns: 200 })).await;
    let end = session.end().await;
    assert_eq!(String::from_utf8(end.stdout).unwrap(), "33 111\r\nready\r\n50 200\r\n");
}

#[tokio::test]
async fn a_terminal_is_the_controlling_one_and_interrupts_by_key() {
    let command = "tty; echo ready; sleep 1000; echo unreachable";
    let mut session = Session::open(terminal(&["bash", "-c", command])).await;
    session.await_output("ready").await;
    session.send(Message::binary(vec![STDIN, 3])).await;
    let end = session.end().await;
    let text = String::from_utf8(end.stdout).unwrap();
    assert!(text.starts_with("/dev/pts/") && !text.contains("unreachable"), "{text:?}");
    assert_eq!(end.outcome, Outcome::Signaled(2));
}

#[tokio::test]
async fn the_end_of_input_is_an_end_of_file_on_a_terminal_too() {
    let mut session = Session::open(terminal(&["sh", "-c", "cat; echo over"])).await;
    session.send(Message::binary(b"\0line\n".to_vec())).await;
    session.control(Control::CloseStdin).await;
    let end = session.end().await;
    assert_eq!(String::from_utf8(end.stdout).unwrap(), "line\r\nline\r\nover\r\n");
}

#[tokio::test]
async fn a_lost_connection_hangs_the_process_up() {
    for terminal in [None, SIZE] {
        let folder = tempfile::tempdir().unwrap();
        let told = folder.path().join("told");
        // The shell's message about its killed child must not be written to a pipe without a reader.
        let command = format!(
            "exec 2>/dev/null; trap 'echo hup > {}; exit' HUP; echo ready; while :; do sleep 0.01; done",
            told.display()
        );
        let mut session = Session::open(ExecRequest { terminal, ..request(&["sh", "-c", &command]) }).await;
        session.await_output("ready").await;
        session.drop_connection();
        common::eventually(|| std::fs::read_to_string(&told).is_ok_and(|text| text == "hup\n")).await;
    }
}

#[tokio::test]
async fn a_lost_client_is_noticed_while_its_input_is_stuck() {
    let folder = tempfile::tempdir().unwrap();
    let pid_file = folder.path().join("pid");
    let command = format!("echo $$ > {}; echo ready; exec sleep 1000", pid_file.display());
    let mut session = Session::open(request(&["sh", "-c", &command])).await;
    session.await_output("ready").await;
    // More than all buffers in between hold; the send below is cut off, and the connection with it.
    let flood = async {
        loop {
            session.send(Message::binary(vec![STDIN; FRAME_MAX])).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(1), flood).await.is_err());
    session.drop_connection();
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    common::eventually(|| !std::path::Path::new("/proc").join(pid.trim()).exists()).await;
}

#[tokio::test]
async fn a_background_process_does_not_delay_the_end() {
    let mut session = Session::open(request(&["sh", "-c", "sleep 1000 & echo $!"])).await;
    let end = session.end().await;
    assert_eq!(end.outcome, Outcome::Exited(0));
    let pid = String::from_utf8(end.stdout).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn the_environment_is_a_logins_and_the_requests() {
    let mut asked = request(&["sh", "-c", "echo \"$HOME:$USER:$LOGNAME:$EXTRA:$CARGO_PKG_NAME\"; pwd"]);
    asked.env.insert("EXTRA".into(), "a b\nc".into());
    asked.cwd = Some("/usr".into());
    let end = Session::open(asked).await.end().await;
    assert_eq!(String::from_utf8(end.stdout).unwrap(), "/root:root:root:a b\nc:\n/usr\n");
}

#[tokio::test]
async fn another_user_has_its_own_numbers() {
    let asked = ExecRequest { user: Some("daemon".into()), cwd: Some("/".into()), ..request(&["id", "-u"]) };
    assert_eq!(Session::open(asked).await.end().await.stdout, b"1\n");
    let asked = ExecRequest { user: Some("4242:77".into()), cwd: Some("/".into()), ..request(&["id"]) };
    assert_eq!(Session::open(asked).await.end().await.stdout, b"uid=4242 gid=77 groups=77\n");
}

#[tokio::test]
async fn a_command_that_cannot_start_is_one_clear_line() {
    let cases = [
        (request(&["no-such-program-anywhere"]), 127, "no-such-program-anywhere: no such program"),
        (request(&["/etc/passwd"]), 126, "/etc/passwd: cannot be executed"),
        (ExecRequest { cwd: Some("/no/such".into()), ..request(&["id"]) }, 125, "there is no folder \"/no/such\""),
        (ExecRequest { user: Some("nobody-here".into()), ..request(&["id"]) }, 125, "no user \"nobody-here\""),
        (ExecRequest { terminal: Some(WindowSize { rows: 0, columns: 1 }), ..request(&["id"]) }, 125, "1 row"),
        (request(&["echo", "a\0b"]), 125, "NUL byte"),
    ];
    for (asked, status, says) in cases {
        let end = Session::open(asked).await.end().await;
        assert_eq!(end.outcome.status(), status, "{:?}", end.outcome);
        let Outcome::Failed(problem) = end.outcome else { panic!("{:?}", end.outcome) };
        assert!(problem.detail.contains(says) && !problem.detail.contains('\n'), "{problem}");
    }
}

#[tokio::test]
async fn a_request_that_is_none_is_refused() {
    for first in [Message::text("{\"command\": 1}"), Message::text("["), Message::binary(vec![1, 2])] {
        let mut session = Session::connect().await;
        session.send(first).await;
        let Outcome::Failed(problem) = session.end().await.outcome else { panic!("it was accepted") };
        assert_eq!(problem.code, Code::Invalid);
    }
}

#[tokio::test]
async fn odd_frames_are_survived() {
    let mut session = Session::open(request(&["cat"])).await;
    for frame in [
        Message::binary(vec![]),
        Message::binary(vec![9, 9]),
        Message::binary(vec![STDOUT, 1]),
        Message::binary(vec![STDERR]),
        Message::text("nonsense"),
        Message::text("{\"signal\": 4000}"),
        Message::Ping(vec![1].into()),
        Message::binary(b"\0ok".to_vec()),
    ] {
        session.send(frame).await;
    }
    session.control(Control::CloseStdin).await;
    session.control(Control::CloseStdin).await;
    let end = session.end().await;
    assert_eq!((end.stdout.as_slice(), end.outcome), (&b"ok"[..], Outcome::Exited(0)));
}

#[tokio::test]
async fn nothing_comes_after_the_outcome() {
    let mut session = Session::open(request(&["true"])).await;
    session.end().await;
    let (_, mut source) = session.split();
    assert!(!matches!(source.next().await, Some(Ok(Message::Text(_) | Message::Binary(_)))));
}
