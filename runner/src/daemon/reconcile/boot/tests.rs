use std::fs;
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use super::*;
use crate::accounts::NameService;
use crate::config::Config;
use crate::daemon::state::tests::machine;
use crate::daemon::state::{Scope, events};
use crate::daemon::testing::{self, id};

#[tokio::test]
async fn a_machine_that_is_newer_than_the_state_is_adopted() {
    for boot_id in ["another", boot_id().unwrap().as_str()] {
        let dir = tempfile::tempdir().unwrap();
        let (daemon, _poked) = testing::daemon(dir.path(), NameService::default());
        let vmm = Some(VmmId { pid: u32::MAX >> 1, started: 1, boot_id: boot_id.to_owned() });
        let (row, process) = (MachineRow { phase: MachinePhase::Running, ..machine(7) }, vmm.clone());
        let written = daemon
            .write(move |db| machines::put(db, &row).and_then(|()| machines::set_vmm(db, id(7), process.as_ref())));
        written.await.unwrap();
        let driver = || Driver::new(daemon.clone(), id(7), Arc::default(), Arc::new(Semaphore::new(1)));
        let socket = daemon.paths(id(7)).api_socket();
        fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let mut running = driver();
        running.adopt().await.unwrap();
        let VmmState::Booting(process) = &running.vmm else { panic!("{:?}", running.vmm) };
        assert_eq!((process.id.pid, running.adopted), (std::process::id(), true));

        daemon.write(move |db| machines::set_vmm(db, id(7), vmm.as_ref())).await.unwrap();
        drop(listener);
        let mut ended = driver();
        ended.adopt().await.unwrap();
        assert_eq!(matches!(ended.vmm, VmmState::Absent), boot_id == "another", "{:?}", ended.vmm);
    }
}

#[tokio::test]
async fn a_machine_that_cannot_be_adopted_stops_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, _poked) = testing::daemon(dir.path(), NameService::default());
    let running = MachineRow { desired: Desired::Running, ..machine(7) };
    daemon.write(move |db| machines::put(db, &running)).await.unwrap();
    // A socket path for which the host cannot find the listener: a symbolic link to itself.
    let socket = daemon.paths(id(7)).api_socket();
    fs::create_dir_all(socket.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(&socket, &socket).unwrap();
    let mut driver = Driver::new(daemon.clone(), id(7), Arc::default(), Arc::new(Semaphore::new(1)));
    assert!(driver.adopt().await.unwrap_err().is::<CannotIdentifyVmm>());

    let patience = Duration::from_secs(daemon.config.machine.stop_deadline_s);
    let mut unwanted_since = Some(Instant::now() - patience);
    assert!(!driver.cut_power_if_overdue(&mut unwanted_since).await && unwanted_since.is_none(), "it should run");
    daemon.write(|db| machines::set_desired(db, id(7), Desired::Stopped)).await.unwrap();
    assert!(!driver.cut_power_if_overdue(&mut unwanted_since).await, "the stop has its time from now on");
    let since = unwanted_since.unwrap();
    unwanted_since = Some(since - patience);
    assert!(driver.cut_power_if_overdue(&mut unwanted_since).await);
    assert!(matches!(driver.vmm, VmmState::Dead) && driver.asked);
    let scope = Scope::Machine(id(7));
    let events = daemon.read(move |db| events::after(db, 0, &scope)).await.unwrap();
    assert!(format!("{events:?}").contains("PowerCut"), "{events:?}");
}

#[tokio::test]
async fn a_machine_above_a_lowered_limit_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let lower = |config: &mut Config| config.limits.memory_mib = Some(400);
    let (daemon, _poked) = testing::daemon_with(dir.path(), NameService::default(), lower);
    let driver = Driver::new(daemon, id(0), Arc::default(), Arc::new(Semaphore::new(1)));
    let error = driver.start_vmm(&machine(0)).await.unwrap_err().to_string();
    assert!(error.starts_with("memory_mib is 512, but at most 400 is allowed ([limits] memory_mib"), "{error}");
}

#[test]
fn a_vmm_that_cannot_be_watched_is_ended() {
    let (state, failure) = state_after_launch(Err(io::ErrorKind::Other.into()));
    assert!(matches!(state, VmmState::Dead) && failure.unwrap().starts_with("cannot watch the VMM: "));
    let (state, failure) = state_after_launch(Ok(None));
    assert!(matches!(state, VmmState::Dead) && failure.is_none());
}

#[test]
fn pauses_between_refused_setups_grow() {
    let (mut since, mut asked) = (Duration::ZERO, 0);
    while since < Duration::from_secs(3600) {
        since += setup_pause(since);
        asked += 1;
    }
    assert!(asked < 150, "{asked} set-ups in an hour");
    assert_eq!(setup_pause(Duration::ZERO), PAUSE);
}

#[test]
fn a_mismatch_names_both_ranges_and_what_to_do() {
    let said = mismatch(ApiRange { min: 2, max: 3 }, true);
    assert!(said.contains("2 to 3") && said.contains("1 to 1") && said.contains("garret stop"), "{said}");
    assert!(mismatch(ApiRange { min: 2, max: 3 }, false).contains("same release"));
}
