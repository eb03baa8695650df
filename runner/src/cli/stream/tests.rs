use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

use super::*;

const INTERRUPT: Control = Control::Signal(2);

/// The two ends of a connection, and a pump with endless input.
async fn pumping(granted: bool) -> (mpsc::Sender<Control>, WebSocketStream<UnixStream>, tokio::task::JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let client = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
    let server = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
    let (chunks, input) = mpsc::channel(4);
    tokio::spawn(async move { while chunks.send(vec![STDIN; FRAME_MAX]).await.is_ok() {} });
    let (signal, signals) = mpsc::channel(4);
    let pump = tokio::spawn(async move {
        let (to, _from) = client.split();
        pump(to, input, signals, &Credit::new(granted)).await;
    });
    (signal, server, pump)
}

/// Frames of input before the first control frame.
async fn frames_before_control(server: &mut WebSocketStream<UnixStream>) -> (u32, Control) {
    let mut frames = 0;
    loop {
        match server.next().await.unwrap().unwrap() {
            Message::Binary(_) => frames += 1,
            Message::Text(text) => return (frames, serde_json::from_str(&text).unwrap()),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn input_stops_at_the_window_and_signals_still_pass() {
    let (signal, mut server, pump) = pumping(true).await;
    for _ in 0..STDIN_WINDOW {
        assert!(server.next().await.unwrap().unwrap().is_binary());
    }
    // Several frames: each is sent before the next arrives.
    for _ in 0..3 {
        signal.send(INTERRUPT).await.unwrap();
        assert_eq!(frames_before_control(&mut server).await, (0, INTERRUPT));
    }
    pump.abort();
}

#[tokio::test]
async fn a_signal_overtakes_input_that_waits() {
    let (signal, mut server, pump) = pumping(true).await;
    // The server has read nothing: the connection is full.
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    signal.send(INTERRUPT).await.unwrap();
    let (frames, control) = frames_before_control(&mut server).await;
    assert!(frames <= STDIN_WINDOW && control == INTERRUPT, "{frames}");
    pump.abort();
}

#[tokio::test]
async fn the_second_interrupt_leaves_a_stuck_connection() {
    let (signal, _server, pump) = pumping(false).await;
    for _ in 0..2 {
        signal.send(INTERRUPT).await.unwrap();
    }
    pump.await.unwrap();
}

#[tokio::test]
async fn a_close_frame_says_why_the_stream_ended() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let client = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
    let mut server = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
    let reason = "uid 7 ended it\u{1b}[2J\n".into();
    server.close(Some(CloseFrame { code: CloseCode::Away, reason })).await.unwrap();
    let error = receive(client.split().1, &Credit::new(true)).await.unwrap_err();
    assert_eq!(error.to_string(), "the stream ended: uid 7 ended it [2J");
}

#[test]
fn a_grant_is_never_more_than_the_window() {
    let credit = Credit::new(true);
    credit.grant(u32::MAX);
    assert_eq!(credit.frames.available_permits(), STDIN_WINDOW as usize);
    credit.frames.try_acquire_many(STDIN_WINDOW).unwrap().forget();
    credit.grant(1);
    assert_eq!(credit.frames.available_permits(), 1);
    let unlimited = Credit::new(false);
    unlimited.grant(u32::MAX);
    assert_eq!(unlimited.frames.available_permits(), Semaphore::MAX_PERMITS);
}
