use super::*;
use crate::devices::conformance::{Request, Subject};
use crate::virtio::testing::{BUFFER, Rig};

pub(crate) fn subject() -> Subject {
    Subject {
        build: || (Box::new(new().unwrap()), Box::new(())),
        session: vec![
            Request::new(0, &[], &[64], |bytes| bytes.len() == 64),
            Request::new(0, &[], &[3, 500], |bytes| bytes.len() == 503),
        ],
    }
}

fn rig() -> Rig {
    let mut rig = Rig::new(Box::new(new().unwrap()));
    rig.start();
    rig
}

#[test]
fn every_answer_is_another() {
    let mut rig = rig();
    let mut ask = || {
        rig.queues[0].add(&[], &[32]);
        rig.queues[0].kick();
        rig.queues[0].wait_used().bytes
    };
    let (first, second) = (ask(), ask());
    assert_eq!((first.len(), second.len()), (32, 32));
    assert_ne!(first, second);
}

#[test]
fn one_request_is_capped() {
    let mut rig = rig();
    rig.queues[0].add(&[], &[BUFFER, BUFFER, BUFFER]);
    rig.queues[0].kick();
    assert_eq!(rig.queues[0].wait_used().bytes.len(), REQUEST_MAX);
}

#[test]
fn a_readable_buffer_is_a_fault() {
    let mut rig = rig();
    rig.queues[0].add(&[vec![1]], &[64]);
    rig.queues[0].kick();
    let interrupt = rig.device.config_interrupt().clone();
    assert_eq!(rig.queues[0].wait_used_unless(|| interrupt.is_reset_needed()), None);
    assert_eq!(rig.faults(), 1);
}
