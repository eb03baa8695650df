use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::routing::get;
use serde_json::{Value, json};

use super::*;
use crate::accounts::NameService;
use crate::daemon::prometheus::{Page, is_grouped};
use crate::daemon::state::{VmmId, tests::machine};
use crate::daemon::testing;

/// How many VMMs do not answer in the test of that.
const SILENT: u32 = 8;

/// A machine whose VMM is this process.
async fn add_machine(daemon: &Daemon, uid: u32) -> MachineId {
    let (row, vmm) = (machine(uid), VmmId { pid: std::process::id(), started: 1, boot_id: String::new() });
    let id = row.id;
    daemon.set_vmm(id, Some(vmm.pid));
    let written = daemon.write(move |db| machines::put(db, &row).and_then(|()| machines::set_vmm(db, id, Some(&vmm))));
    written.await.unwrap();
    id
}

/// A machine whose VMM answers with this text.
async fn add_answering(daemon: &Daemon, uid: u32, answer: String) {
    let id = add_machine(daemon, uid).await;
    testing::serve_vmm(daemon, id, Router::new().route("/v1/metrics", get(async move || answer)));
}

fn metrics() -> Value {
    let block = json!({ "kicks": 1, "interrupts": 2, "chains": 3, "bytes": 4096, "faults": 5, "host_failures": 6 });
    json!({ "setup_ns": 1, "exits": { "io": 9 }, "reported_free": 2048, "devices": { "block0": block } })
}

async fn text(daemon: &Daemon) -> String {
    let mut page = Page::default();
    render(&mut page, &of_all(daemon).await.unwrap());
    page.into_text()
}

fn daemon() -> (tempfile::TempDir, Arc<Daemon>) {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, _poked) = testing::daemon(dir.path(), NameService::default());
    (dir, daemon)
}

#[tokio::test]
async fn every_counter_is_a_series() {
    let (_dir, daemon) = daemon();
    add_answering(&daemon, 1, metrics().to_string()).await;
    let text = text(&daemon).await;
    let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(
        samples,
        [
            "garret_vmm_up{developer=\"dev1\"} 1",
            "garret_vmm_exits_total{developer=\"dev1\",reason=\"io\"} 9",
            "garret_vmm_reported_free_bytes_total{developer=\"dev1\"} 2048",
            "garret_vmm_device_requests_total{developer=\"dev1\",device=\"block0\"} 3",
            "garret_vmm_device_bytes_total{developer=\"dev1\",device=\"block0\"} 4096",
            "garret_vmm_device_kicks_total{developer=\"dev1\",device=\"block0\"} 1",
            "garret_vmm_device_interrupts_total{developer=\"dev1\",device=\"block0\"} 2",
            "garret_vmm_device_faults_total{developer=\"dev1\",device=\"block0\"} 5",
            "garret_vmm_device_host_failures_total{developer=\"dev1\",device=\"block0\"} 6",
        ]
    );
    assert!(is_grouped(&text), "{text}");
}

#[tokio::test]
async fn names_that_a_hostile_vmm_invents_are_dropped() {
    let (_dir, daemon) = daemon();
    let mut invented = metrics();
    for index in 0..100 {
        invented["exits"][format!("io{index}")] = 1.into();
        invented["devices"][format!("block0\"}} 1\nup{index} ")] = invented["devices"]["block0"].clone();
    }
    add_answering(&daemon, 1, metrics().to_string()).await;
    let honest = text(&daemon).await;
    let (_dir, daemon) = self::daemon();
    add_answering(&daemon, 1, invented.to_string()).await;
    assert_eq!(text(&daemon).await, honest);
}

#[tokio::test]
async fn a_vmm_that_does_not_answer_delays_no_other() {
    let (_dir, daemon) = daemon();
    let mut listeners = Vec::new();
    for uid in 1..=SILENT {
        let socket = daemon.paths(add_machine(&daemon, uid).await).api_socket();
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        // It never accepts.
        listeners.push(tokio::net::UnixListener::bind(socket).unwrap());
    }
    let refuses = SILENT + 1;
    add_machine(&daemon, refuses).await;
    let answers = ["[]".to_owned(), " ".repeat(ANSWER_MAX + 1), metrics().to_string()];
    for (uid, answer) in (refuses + 1..).zip(answers) {
        add_answering(&daemon, uid, answer).await;
    }
    let begun = Instant::now();
    let text = text(&daemon).await;
    assert!(begun.elapsed() < TIMEOUT * SILENT / 2, "one after the other: {:?}", begun.elapsed());
    let up: Vec<&str> = text.lines().filter(|line| line.starts_with("garret_vmm_up{")).collect();
    let answered = up.iter().filter(|line| line.ends_with(" 1")).count();
    assert_eq!((up.len(), answered), (SILENT as usize + 4, 1), "{text}");
    let requests = text.lines().filter(|line| line.starts_with("garret_vmm_device_requests_total{"));
    assert_eq!(requests.count(), 1, "{text}");
}
