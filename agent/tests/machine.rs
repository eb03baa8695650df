//! The guest API's plain calls on a Unix socket.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use common::Server;
use garret_api::agent::{AgentInfo, MemoryReport};
use garret_api::{Code, Problem};

/// Sends one HTTP/1.1 request; returns the status and the body.
async fn call(server: &Server, method: &str, path: &str, body: &str) -> (u16, String) {
    let socket = server.socket();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: guest\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    let answer = tokio::task::spawn_blocking(move || {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(common::TIMEOUT)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let answer = answer.await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn the_agent_reports_version_and_boot() {
    let server = Server::start();
    let (status, body) = call(&server, "GET", "/v1/agent", "").await;
    let info: AgentInfo = serde_json::from_str(&body).unwrap();
    assert_eq!((status, info.pid, info.set_up), (200, std::process::id(), false));
    assert_eq!(info.boot_id.len(), 36);
}

/// Opens `GET /v1/memory` and reads its first report.
fn first_report(socket: &std::path::Path) -> (UnixStream, MemoryReport) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(common::TIMEOUT)).unwrap();
    stream.write_all(b"GET /v1/memory HTTP/1.1\r\nHost: guest\r\n\r\n").unwrap();
    let lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
    let line = lines.into_iter().find(|line| line.starts_with('{')).unwrap();
    (stream, serde_json::from_str(&line).unwrap())
}

#[tokio::test]
async fn every_listener_gets_a_report_at_once() {
    let server = Server::start();
    let socket = server.socket();
    let reading = tokio::task::spawn_blocking(move || {
        // The second listener comes while the first is connected, the third after both have disconnected.
        let (first, second) = (first_report(&socket), first_report(&socket));
        drop(first);
        drop(second.0);
        [second.1, first_report(&socket).1]
    });
    for report in reading.await.unwrap() {
        assert!(report.total > report.available && report.available > 0);
        assert_eq!(report.pressure.is_some(), std::path::Path::new("/proc/pressure/memory").exists());
    }
}

#[tokio::test]
async fn a_target_is_set_and_taken_back() {
    let server = Server::start();
    for body in [r#"{"target": 67108864}"#, r#"{"target": 18446744073709551615}"#, r#"{"target": null}"#, "{}"] {
        assert_eq!(call(&server, "PUT", "/v1/memory", body).await, (204, String::new()), "{body}");
    }
}

#[tokio::test]
async fn every_refusal_is_a_problem() {
    let server = Server::start();
    let cases = [
        ("GET", "/v2/agent", "", 404, Code::NotFound),
        ("PUT", "/v1/machine", "{", 400, Code::Invalid),
        ("PUT", "/v1/machine", r#"{"hostnme": "b"}"#, 400, Code::Invalid),
        ("PUT", "/v1/machine", r#"{"hostname": "no spaces"}"#, 400, Code::Invalid),
        ("POST", "/v1/workspaces/..%2fetc/release", "", 400, Code::Invalid),
        ("POST", "/v1/power-off", "", 503, Code::Unavailable),
        ("PUT", "/v1/memory", r#"{"target": 67108863}"#, 400, Code::Invalid),
        ("PUT", "/v1/memory", r#"{"target": -1}"#, 400, Code::Invalid),
        ("PUT", "/v1/memory", r#"{"target": "all"}"#, 400, Code::Invalid),
        ("GET", "/v1/environments/none", "", 404, Code::NotFound),
        ("GET", "/v1/environments/none/log", "", 404, Code::NotFound),
    ];
    for (method, path, body, status, code) in cases {
        let (got, answer) = call(&server, method, path, body).await;
        let problem: Problem = serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{path}: {answer:?}"));
        assert_eq!((got, problem.code), (status, code), "{method} {path}: {problem}");
        assert!(!problem.detail.contains('\n'));
    }
}
