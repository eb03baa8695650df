use std::collections::HashSet;

use super::*;
use crate::daemon::testing::id;

const ALICE: u32 = 1000;
const BOB: u32 = 1001;

fn new(uid: u32, opened_by: u32) -> NewStream {
    NewStream {
        kind: StreamKind::Exec,
        machine: id(uid),
        developer: format!("dev{uid}"),
        uid,
        environment: None,
        opened_by,
    }
}

fn fill(streams: &Streams, uid: u32, opened_by: u32) -> Vec<OpenStream> {
    std::iter::from_fn(|| streams.open(new(uid, opened_by)).ok()).take(1000).collect()
}

#[test]
fn accounts_and_machines_have_limits_and_root_only_the_second() {
    // The account, the machine, and how many of its streams the machine has afterwards.
    let streams = Streams::default();
    let mut held = Vec::new();
    for (opened_by, uid, total) in [
        (ALICE, ALICE, OF_ACCOUNT_MAX),
        (ALICE, BOB, 0),
        (0, ALICE, OF_MACHINE_MAX),
        (BOB, ALICE, OF_MACHINE_MAX),
        (BOB, BOB, OF_ACCOUNT_MAX),
        (0, BOB, OF_MACHINE_MAX),
    ] {
        held.extend(fill(&streams, uid, opened_by));
        assert_eq!(streams.list(|stream| stream.uid == uid).len(), total, "{opened_by} in {uid}");
    }
    for (opened_by, said) in [(ALICE, "this account has 224 streams"), (0, "the machine of dev1000 has 256 streams")] {
        let problem = streams.open(new(ALICE, opened_by)).unwrap_err();
        assert_eq!(problem.code, Code::Unavailable);
        assert!(problem.detail.starts_with(said) && problem.detail.contains("`garret streams`"), "{problem}");
    }
    let one = held.iter().position(|stream| stream.id == one_of(&streams, ALICE)).unwrap();
    drop(held.swap_remove(one));
    held.push(streams.open(new(ALICE, ALICE)).unwrap());
    let ids: HashSet<_> = held.iter().map(|stream| stream.id.clone()).collect();
    assert_eq!(ids.len(), 2 * OF_MACHINE_MAX);
    drop(held);
    assert_eq!(streams.list(|_| true), []);
}

/// The id of a stream that this account has open.
fn one_of(streams: &Streams, opened_by: u32) -> String {
    streams.list(|stream| stream.opened_by == opened_by).remove(0).id
}

#[test]
fn the_oldest_is_listed_first_with_what_it_has_carried() {
    let streams = Streams::default();
    let opened = [streams.open(new(ALICE, ALICE)).unwrap(), streams.open(new(ALICE, 0)).unwrap()];
    for (open, age) in opened.iter().zip([5, 10]) {
        lock(&streams.0).open.get_mut(&open.id).unwrap().stream.opened_ms -= age;
    }
    opened[0].bytes.to_guest.fetch_add(3, Ordering::Relaxed);
    opened[0].bytes.from_guest.fetch_add(4, Ordering::Relaxed);
    let listed = streams.list(|stream| stream.uid == ALICE);
    let shown: Vec<_> = listed.iter().map(|s| (s.opened_by, s.to_guest_bytes, s.from_guest_bytes)).collect();
    assert_eq!(shown, [(0, 0, 0), (ALICE, 3, 4)]);
    assert_eq!(streams.list(|stream| stream.uid == BOB), []);
}

#[tokio::test]
async fn an_end_has_one_reason_and_waits_for_the_stream() {
    let streams = Arc::new(Streams::default());
    let open = streams.open(new(ALICE, ALICE)).unwrap();
    let id = open.id.clone();
    assert!(!streams.end(&id, |stream| stream.uid == BOB, End::Requested { by: BOB }).await);
    let (asked, name) = (streams.clone(), id.clone());
    let ending = tokio::spawn(async move { asked.end(&name, |_| true, End::Requested { by: ALICE }).await });
    assert_eq!(open.end_requested().await, End::Requested { by: ALICE });
    streams.close();
    assert_eq!(open.end_requested().await, End::Requested { by: ALICE }, "the first reason counts");
    tokio::task::yield_now().await;
    assert!(!ending.is_finished(), "the stream still has its connections");
    open.finish(End::Client);
    assert!(ending.await.unwrap());
    assert!(!streams.end(&id, |_| true, End::Shutdown).await);
    let problem = streams.open(new(ALICE, ALICE)).unwrap_err();
    assert!(problem.detail.contains("the garret daemon was stopped"), "{problem}");
}
