//! Tests of the worker: faults and panics end in a reset, and `stop` ends in time or reports that it did not.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::seccomp::Role;
use crate::virtio::testing::{HUNG, Rig, panics};
use crate::virtio::{
    Backend, BuildError, Busy, ConfigBytes, Device, EventOps, EventSet, Events, Fault, Identity, Ring,
};

fn identity(queues: usize) -> Identity {
    Identity {
        name: "test".into(),
        device_type: 99,
        features: 0,
        queue_sizes: vec![16; queues],
        config: Arc::new(ConfigBytes(Vec::new())),
    }
}

/// Does what the first byte of a request requests.
struct Obedient;

impl Backend for Obedient {
    fn kicked(&mut self, queue: usize, rings: &mut [Ring]) -> Result<(), Fault> {
        while let Some(chain) = rings[queue].take()? {
            match chain.reader().read_obj::<u8>()? {
                b'p' => panic!("as told"),
                b'f' => return Err(Fault::Request("as told")),
                b'l' => {}
                _ => rings[queue].complete(chain.head(), 0)?,
            }
        }
        rings[queue].signal()
    }
}

fn rig(queues: usize) -> Rig {
    let groups = (0..queues).map(|queue| (Obedient, queue..queue + 1)).collect();
    let mut rig = Rig::new(Box::new(Device::new(identity(queues), groups, Role::Quiet).unwrap()));
    rig.start();
    rig
}

fn send_byte(rig: &mut Rig, queue: usize, byte: u8) -> bool {
    rig.queues[queue].add(&[vec![byte]], &[]);
    rig.queues[queue].kick();
    let interrupt = rig.device.config_interrupt().clone();
    rig.queues[queue].wait_used_unless(|| interrupt.is_reset_needed()).is_some()
}

#[test]
fn a_fault_and_a_panic_need_a_reset_and_a_reset_is_enough() {
    for byte in [b'f', b'p'] {
        let before = panics("test");
        let mut rig = rig(1);
        let config = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        rig.device.config_interrupt().connect(Some(config.clone()));
        assert!(send_byte(&mut rig, 0, b'x'));
        assert!(!send_byte(&mut rig, 0, byte));
        assert_eq!((rig.faults(), config.read().unwrap()), (1, 1));
        assert_eq!(panics("test") - before, usize::from(byte == b'p'));
        rig.stop();
        rig.start();
        assert!(send_byte(&mut rig, 0, b'x'));
    }
}

#[test]
fn a_worker_that_waits_for_its_reset_serves_nothing() {
    let mut rig = rig(1);
    assert!(!send_byte(&mut rig, 0, b'f'));
    rig.device.config_interrupt().reset();
    rig.queues[0].add(&[vec![b'x']], &[]);
    rig.queues[0].kick();
    assert_eq!(rig.stop()[0].next_used, 0);
}

#[test]
fn a_backend_that_forgets_a_chain_is_found_out() {
    let mut rig = rig(1);
    rig.queues[0].add(&[vec![b'l']], &[]);
    rig.queues[0].kick();
    assert!(send_byte(&mut rig, 0, b'x'));
    assert!(!rig.is_broken());
    rig.stop();
    assert!(rig.is_broken());
}

#[test]
fn groups_work_side_by_side_and_their_states_come_in_order() {
    let mut rig = rig(3);
    assert!(send_byte(&mut rig, 2, b'x') && send_byte(&mut rig, 2, b'x') && send_byte(&mut rig, 1, b'x'));
    assert_eq!(rig.stop().iter().map(|state| state.next_used).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn groups_must_cover_the_queues() {
    let bad: [&[(usize, usize)]; 6] =
        [&[], &[(0, 1)], &[(1, 2), (0, 1)], &[(0, 1), (1, 3)], &[(0, 2), (1, 2)], &[(0, 2), (2, 2)]];
    for groups in bad {
        let groups = groups.iter().map(|(start, end)| (Obedient, *start..*end)).collect();
        assert!(matches!(Device::new(identity(2), groups, Role::Quiet), Err(BuildError::Queues { .. })));
    }
    let wrong_size = Identity { queue_sizes: vec![2048], ..identity(1) };
    assert!(matches!(Device::new(wrong_size, vec![(Obedient, 0..1)], Role::Quiet), Err(BuildError::Queues { .. })));
}

#[test]
fn a_worker_whose_preparation_fails_fails_the_build() {
    struct Unprepared;
    impl Backend for Unprepared {
        fn prepare(&mut self) -> std::io::Result<()> {
            Err(std::io::Error::other("no ring"))
        }
        fn kicked(&mut self, _: usize, _: &mut [Ring]) -> Result<(), Fault> {
            Ok(())
        }
    }
    let error = Device::new(identity(1), vec![(Unprepared, 0..1)], Role::Quiet).err().unwrap();
    assert_eq!(error.to_string(), "test: cannot start a worker thread: no ring");
}

/// Blocks in its stop until the test releases it, and reports its calls.
struct SlowToStop {
    release: Receiver<()>,
    calls: Sender<&'static str>,
    own: EventFd,
}

impl Backend for SlowToStop {
    fn reset(&mut self) {
        self.calls.send("reset").unwrap();
    }
    fn start(&mut self, _: u64, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        self.calls.send("start").unwrap();
        ops.add(Events::with_data(&self.own, 7, EventSet::IN))?;
        self.own.write(1)?;
        Ok(())
    }
    fn kicked(&mut self, _: usize, _: &mut [Ring]) -> Result<(), Fault> {
        Ok(())
    }
    fn ready(&mut self, events: Events, _: &mut [Ring]) -> Result<(), Fault> {
        assert_eq!((events.data(), events.event_set()), (7, EventSet::IN));
        self.own.read()?;
        self.calls.send("ready").unwrap();
        Ok(())
    }
    fn stop(&mut self, _: &mut [Ring]) -> Result<(), Fault> {
        self.release.recv().unwrap();
        self.calls.send("stop").unwrap();
        Ok(())
    }
}

#[test]
fn a_stop_reports_busy_in_time_and_succeeds_later() {
    let ((go, release), (calls, called)) = (channel(), channel());
    let own = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let backend = SlowToStop { release, calls, own };
    let mut rig = Rig::new(Box::new(Device::new(identity(1), vec![(backend, 0..1)], Role::Quiet).unwrap()));
    let called = || called.recv_timeout(HUNG).unwrap();

    rig.start();
    assert_eq!([called(), called(), called()], ["reset", "start", "ready"]);
    for _ in 0..2 {
        assert_eq!(rig.device.stop(Duration::from_millis(1)), Err(Busy));
    }
    go.send(()).unwrap();
    let states = rig.stop();
    assert_eq!(called(), "stop");

    // The worker continues: there is no reset this time, and it registers its descriptors again.
    rig.resume(states);
    assert_eq!([called(), called()], ["start", "ready"]);
    go.send(()).unwrap();
    assert_eq!(rig.stop().len(), 1);
}
