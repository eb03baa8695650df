//! Clients that connect and then send too much, too little or too slowly.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::*;

impl Server {
    /// Connects as this uid, sends `request` and returns what comes back until the server closes the connection.
    async fn talk(&self, uid: u32, request: &'static str) -> String {
        let path = self.dir.path().join("garret.sock");
        let client = thread::spawn(move || {
            let mut stream = as_uid(uid, || UnixStream::connect(&path).unwrap());
            // The server may refuse before it has read everything.
            let _ = stream.write_all(request.as_bytes());
            let mut answer = String::new();
            // A reset ends the connection, too.
            let _ = stream.read_to_string(&mut answer);
            answer
        });
        tokio::task::spawn_blocking(move || client.join().unwrap()).await.unwrap()
    }
}

/// Calls `connect` with the rights of this uid, on a thread that ends afterwards.
fn as_uid<T>(uid: u32, connect: impl FnOnce() -> T) -> T {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    rustix::thread::set_thread_groups(&[]).unwrap();
    rustix::thread::set_thread_res_gid(group, group, group).unwrap();
    rustix::thread::set_thread_res_uid(user, user, user).unwrap();
    connect()
}

#[tokio::test]
async fn a_request_without_an_end_is_closed() {
    let names = tempfile::tempdir().unwrap();
    let service = name_service_with(names.path(), &[ALICE]);
    let server = Server::with_times(service, Duration::from_millis(300)).await;
    let begun = Instant::now();
    assert!(!server.talk(ALICE, "GET /v1/host HTTP/1.1\r\nhost: garret\r\nx-").await.contains("200 OK"));
    assert!(begun.elapsed() >= Duration::from_millis(300), "it was refused for another reason");
}

#[tokio::test]
async fn a_uid_without_account_is_refused_before_its_body() {
    let server = Server::start().await;
    let unfinished =
        "PUT /v1/machines/1 HTTP/1.1\r\nhost: garret\r\ncontent-length: 1000\r\nconnection: close\r\n\r\n{";
    let answer = server.talk(200_001, unfinished).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("uid 200001 has no account"), "{answer}");
    let (status, _) = refused(server.call(200_001, Method::GET, "/v1/machines", None).await);
    assert_eq!(status, 403);
}

#[tokio::test]
async fn a_large_body_is_refused() {
    let server = Server::start().await;
    let large = json!({"workspace": "/w", "desired": "stopped", "local_env": {"NAME": "x".repeat(BODY_MAX)}});
    let path = format!("/v1/environments/{}", environment_id(ALICE, Path::new("/w")));
    let (status, said) = refused(server.call(ALICE, Method::PUT, &path, Some(large)).await);
    assert_eq!(status, 413, "{said}");
}

#[tokio::test]
async fn the_connection_beyond_the_limit_is_answered() {
    let server = Server::start().await;
    // Accounts are known from their first request on.
    server.call(ALICE, Method::GET, "/v1/machines", None).await.unwrap();
    let path = server.dir.path().join("garret.sock");
    let connect = move || (0..256).map(|_| UnixStream::connect(&path).unwrap()).collect::<Vec<_>>();
    let caller = thread::spawn(|| as_uid(ALICE, connect));
    let open = tokio::task::spawn_blocking(move || caller.join().unwrap()).await.unwrap();
    let (status, said) = refused(server.call(ALICE, Method::GET, "/v1/machines", None).await);
    assert!(status == 503 && said.contains("256 connections"), "{said}");
    server.call(BOB, Method::GET, "/v1/machines", None).await.unwrap();
    drop(open);
}
