//! The client against a server that answers with exactly the bytes a case names.

use tempfile::TempDir;
use tokio::net::UnixListener;

use super::*;

/// A server for one connection: reads until it has read `until`, sends `answer`, and closes. Returns what it read.
fn serve(steps: Vec<(&'static str, Vec<u8>)>) -> (TempDir, PathBuf, tokio::task::JoinHandle<String>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut read = Vec::new();
        for (until, answer) in steps {
            while !String::from_utf8_lossy(&read).contains(until) {
                read.push(stream.read_u8().await.unwrap());
            }
            let _ = stream.write_all(&answer).await;
        }
        String::from_utf8_lossy(&read).into_owned()
    });
    (dir, path, task)
}

fn answer(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[tokio::test]
async fn json_is_sent_and_received() {
    let (_dir, path, server) = serve(vec![("{\"a\":1}", answer("200 OK", "[1,2]"))]);
    let got: Vec<u32> = Client::unix(path).put("/v1/x", &serde_json::json!({"a": 1})).await.unwrap();
    assert_eq!(got, [1, 2]);
    assert!(server.await.unwrap().starts_with("PUT /v1/x HTTP/1.1\r\n"));
}

#[tokio::test]
async fn the_vsock_handshake_comes_first() {
    let (_dir, path, server) =
        serve(vec![("CONNECT 1024\n", b"OK 7\n".to_vec()), ("\r\n\r\n", answer("200 OK", "\"up\""))]);
    let got: String = Client::vsock(path, 1024).get("/v1/agent").await.unwrap();
    assert_eq!(got, "up");
    assert!(server.await.unwrap().starts_with("CONNECT 1024\nGET /v1/agent HTTP/1.1\r\n"));
}

#[tokio::test]
async fn a_port_without_a_listener_has_its_own_error() {
    let (_dir, path, _server) = serve(vec![("CONNECT 1024\n", Vec::new())]);
    let error = Client::vsock(path, 1024).get::<String>("/v1/agent").await.unwrap_err();
    assert!(matches!(error, Error::NoListener { port: 1024 }), "{error}");
}

#[tokio::test]
async fn a_hostile_handshake_ends() {
    let (_dir, path, _server) = serve(vec![("CONNECT 1024\n", vec![b'x'; 1000])]);
    let error = Client::vsock(path, 1024).get::<String>("/v1/agent").await.unwrap_err();
    assert!(error.to_string().contains("unexpected answer to the vsock handshake"), "{error}");
}

#[tokio::test]
async fn a_problem_keeps_its_status_and_words() {
    let (_dir, path, _server) =
        serve(vec![("\r\n\r\n", answer("404 Not Found", r#"{"code":"not-found","detail":"no such machine"}"#))]);
    let error = Client::unix(path).get::<String>("/v1/x").await.unwrap_err();
    assert_eq!(error.status(), Some(404));
    assert_eq!(error.to_string(), "no such machine");
    assert_eq!(error.into_problem().code, Code::NotFound);
}

#[tokio::test]
async fn a_refusal_that_is_no_problem_becomes_one_line() {
    let (_dir, path, _server) = serve(vec![("\r\n\r\n", answer("500 Internal Server Error", "oops\nsecond line"))]);
    assert_eq!(Client::unix(path).text("/v1/x").await.unwrap_err().to_string(), "oops");
}

/// The longest error: its line, and the socket's path before it.
const ERROR_MAX: usize = 1024;

#[tokio::test]
async fn a_refusal_is_one_short_line() {
    let said = "\u{1b}\n".repeat(2_000);
    let problem =
        serde_json::to_string(&Problem::new(Code::Internal, format!("{said}{}", "y".repeat(10_000)))).unwrap();
    for body in [problem, "y".repeat(60_000)] {
        let (_dir, path, _server) = serve(vec![("\r\n\r\n", answer("500 Internal Server Error", &body))]);
        let problem = Client::unix(path).text("/v1/x").await.unwrap_err().into_problem();
        assert!(problem.detail.len() < ERROR_MAX, "{}", problem.detail.len());
        assert!(problem.detail.starts_with('y') && !problem.detail.contains(char::is_control), "{problem}");
    }
}

#[tokio::test]
async fn an_answer_of_another_type_is_quoted_in_one_short_line() {
    let body = format!("\"{}\"", "\\u0001\\n".repeat(100_000));
    let (_dir, path, _server) = serve(vec![("\r\n\r\n", answer("200 OK", &body))]);
    let error = Client::unix(path).get::<u32>("/v1/x").await.unwrap_err().to_string();
    assert!(error.contains("unexpected answer: invalid type: string") && error.len() < ERROR_MAX, "{}", error.len());

    let (_dir, path, _server) = serve(vec![("\r\n\r\n", answer("200 OK", &format!("{body}\n")))]);
    let mut lines: Lines<u32> = Client::unix(path).lines::<u32, ()>(Method::GET, "/v1/events", None).await.unwrap();
    let error = lines.next().await.unwrap_err().to_string();
    assert!(error.contains("invalid type: string") && error.len() < ERROR_MAX, "{}", error.len());
}

#[tokio::test]
async fn no_server_names_the_socket() {
    let error = Client::unix("/nonexistent/garret.sock").post("/v1/x").await.unwrap_err();
    assert!(error.to_string().starts_with("cannot connect to /nonexistent/garret.sock: "), "{error}");
}

#[tokio::test]
async fn lines_arrive_whole_whatever_the_pieces() {
    let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n1\n\r\n1\r\n2\r\n4\r\n3\n\n4\r\n1\r\n\n\r\n0\r\n\r\n";
    let (_dir, path, _server) = serve(vec![("\r\n\r\n", chunked.to_vec())]);
    let mut lines: Lines<u32> = Client::unix(path).lines::<u32, ()>(Method::GET, "/v1/events", None).await.unwrap();
    let mut got = Vec::new();
    while let Some(value) = lines.next().await.unwrap() {
        got.push(value);
    }
    assert_eq!(got, [1, 23, 4]);
}

#[tokio::test]
async fn a_line_without_end_is_refused() {
    let mut endless = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    endless.resize(endless.len() + LINE_MAX + 100_000, b'7');
    let (_dir, path, _server) = serve(vec![("\r\n\r\n", endless)]);
    let mut lines: Lines<u32> = Client::unix(path).lines::<u32, ()>(Method::GET, "/v1/events", None).await.unwrap();
    assert!(lines.next().await.unwrap_err().to_string().contains("a line longer than"));
}

#[tokio::test]
async fn empty_lines_without_end_are_refused() {
    let mut empty = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    empty.resize(empty.len() + 1000, b'\n');
    let (_dir, path, _server) = serve(vec![("\r\n\r\n", empty)]);
    let mut lines: Lines<u32> = Client::unix(path).lines::<u32, ()>(Method::GET, "/v1/events", None).await.unwrap();
    assert!(lines.next().await.unwrap_err().to_string().contains("nothing but empty lines"));
}

#[tokio::test]
async fn silence_ends_at_the_deadline() {
    let (_dir, path, server) = serve(vec![("\r\n\r\n", Vec::new()), ("never", Vec::new())]);
    let client = Client::unix(path).with_deadline(Duration::from_millis(20));
    assert!(matches!(client.text("/v1/x").await.unwrap_err(), Error::Deadline { .. }));
    server.abort();
}

#[tokio::test]
async fn a_refused_websocket_has_its_reason() {
    let (_dir, path, _server) =
        serve(vec![("\r\n\r\n", answer("409 Conflict", r#"{"code":"unavailable","detail":"it is stopped"}"#))]);
    let error = Client::unix(path).exec_stream("/v1/exec").await.unwrap_err();
    assert_eq!((error.status(), error.to_string().as_str()), (Some(409), "it is stopped"));
}
