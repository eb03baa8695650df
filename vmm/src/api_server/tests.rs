//! The real server on a real socket, in front of a driver without a machine.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;

use garret_api::Problem;
use garret_api::vmm::{MachineState, MemoryInfo, MemoryTarget, Metrics, SocketAt};

use super::routes::BODY_MAX;
use super::{ApiServer, CONNECTIONS_MAX};
use crate::control::{Command, Event, Events, Refused, admit};

/// Answers like the driver, without a machine.
fn answer_all(events: Receiver<Event>, mut state: MachineState) {
    for event in events {
        let Event::Command(command) = event else { continue };
        let admitted = admit(state, &command);
        match command {
            Command::Shutdown(reply) => {
                let _ = reply.send(admitted.map(|()| state = MachineState::Stopping));
            }
            Command::Pause(reply) | Command::Resume(reply) | Command::PowerButton(reply) => _ = reply.send(admitted),
            Command::Memory(reply) => _ = reply.send(Ok(MemoryInfo::default())),
            Command::SetMemory(MemoryTarget { requested_mib: 7.. }, reply) => {
                let _ = reply.send(admitted.and(Err(Refused::Invalid("too much".to_owned()))));
            }
            Command::SetMemory(target, reply) => {
                let info = MemoryInfo { requested_mib: target.requested_mib, ..Default::default() };
                let _ = reply.send(admitted.map(|()| info));
            }
            Command::Metrics(reply) => _ = reply.send(Ok(Metrics::default())),
            Command::Describe(reply) => drop(reply), // as if it had just ended
        }
    }
}

/// A server on a separate socket, with its driver.
struct Running {
    server: ApiServer,
    driver: std::thread::JoinHandle<()>,
    socket: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

impl Running {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("api.sock");
        let (events, receiver) = Events::channel();
        let driver = std::thread::spawn(move || answer_all(receiver, MachineState::Running));
        let server = ApiServer::spawn(SocketAt::Path(socket.clone()), events).unwrap();
        Self { server, driver, socket, _folder: folder }
    }

    /// Sends one HTTP request as text; returns the status and the body.
    fn call(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        let len = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: vmm\r\nconnection: close\r\ncontent-length: {len}\r\n\r\n");
        let _ = stream.write_all(format!("{head}{body}").as_bytes()); // a refused body's end may meet a closed socket
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn end(self) {
        self.server.end();
        assert!(!self.socket.exists());
        self.driver.join().unwrap();
    }
}

#[test]
fn every_path_has_its_status_and_every_error_is_a_problem() {
    let running = Running::start();
    for (method, path, body, status, contains) in [
        ("GET", "/v1/metrics", "", 200, r#""setup_ns":0"#),
        ("PUT", "/v1/memory", "{\n \"requested\": 5}", 400, "missing field `requested_mib` at line 2"),
        ("PUT", "/v1/memory", "", 400, "body: EOF while parsing"),
        ("GET", "/v1/memory", "", 200, r#""size_mib":0"#),
        ("PUT", "/v1/memory", r#"{"requested_mib": 6}"#, 200, r#""requested_mib":6"#),
        ("PUT", "/v1/memory", r#"{"requested_mib": 8}"#, 400, "too much"),
        ("PUT", "/v1/memory", r#"{"requested_mib": -2}"#, 400, "invalid value: integer `-2`, expected u32 at line 1"),
        ("PUT", "/v1/memory", r#"{"mib": 2}"#, 400, "missing field `requested_mib` at line 1"),
        ("POST", "/v1/pause", "", 204, ""),
        ("POST", "/v1/resume", "", 204, ""),
        ("POST", "/v1/power-button", "", 202, ""),
        ("GET", "/v1/machine", "", 503, "the machine has ended"),
        ("GET", "/v2", "", 404, "not-found"),
        ("DELETE", "/v1/machine", "", 405, "method-not-allowed"),
        ("POST", "/v1/shutdown", "", 204, ""),
        ("POST", "/v1/pause", "", 409, "the machine is stopping"),
        ("POST", "/v1/power-button", "", 409, "the machine is stopping"),
        ("PUT", "/v1/memory", r#"{"requested_mib": 5}"#, 409, "conflict"),
        ("PUT", "/v1/memory", r#"{"requested_mib": 6}"#, 409, "conflict"),
        ("GET", "/v1/memory", "", 200, r#""requested_mib":0"#),
    ] {
        let (got, text) = running.call(method, path, body);
        assert_eq!(got, status, "{method} {path}: {text}");
        assert!(text.contains(contains), "{method} {path}: {text}");
        if status >= 400 {
            serde_json::from_str::<Problem>(&text).unwrap();
        }
    }
    running.end();
}

#[test]
fn a_large_body_is_refused() {
    let running = Running::start();
    assert_eq!(running.call("PUT", "/v1/memory", &" ".repeat(BODY_MAX + 1)).0, 413);
    running.end();
}

#[test]
fn connections_beyond_the_limit_wait_for_a_place() {
    let running = Running::start();
    let mut idle: Vec<_> = (0..CONNECTIONS_MAX).map(|_| UnixStream::connect(&running.socket).unwrap()).collect();
    let mut waiting = UnixStream::connect(&running.socket).unwrap();
    waiting.write_all(b"GET /v1/memory HTTP/1.1\r\nhost: vmm\r\nconnection: close\r\n\r\n").unwrap();
    waiting.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    assert!(waiting.read(&mut [0]).is_err(), "it is served");
    idle.pop();
    waiting.set_read_timeout(None).unwrap();
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    drop(idle);
    running.end();
}
