use std::path::Path;

use super::*;
use crate::devices::conformance::{Request, Subject};
use crate::virtio::testing::Rig;

fn device(folder: &Path) -> Device {
    let log = ConsoleLog::open(Some(&folder.join("console.log")), || ()).unwrap();
    new(Arc::new(log)).unwrap()
}

pub(crate) fn subject() -> Subject {
    Subject {
        build: || {
            let folder = tempfile::tempdir().unwrap();
            (Box::new(device(folder.path())), Box::new(folder))
        },
        session: vec![
            Request::new(TRANSMIT, &[b"hello\n"], &[], <[u8]>::is_empty),
            Request::new(TRANSMIT, &[b"a longer ", b"line in two\n"], &[], <[u8]>::is_empty),
        ],
    }
}

#[test]
fn printed_text_is_logged_in_order_and_requests_are_capped() {
    let folder = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(Box::new(device(folder.path())));
    rig.start();
    for text in [
        vec![b"one ".to_vec(), b"two ".to_vec()],
        vec![vec![b'x'; 60_000], vec![b'y'; 60_000]],
        vec![b"three".to_vec()],
    ] {
        rig.queues[TRANSMIT].add(&text, &[]);
        rig.queues[TRANSMIT].kick();
        assert!(rig.queues[TRANSMIT].wait_used().bytes.is_empty());
    }
    let mut expected = b"one two ".to_vec();
    expected.extend([b'x'; 60_000]);
    expected.extend([b'y'; REQUEST_MAX - 60_000]);
    expected.extend(b"three");
    assert!(std::fs::read(folder.path().join("console.log")).unwrap() == expected);
}
