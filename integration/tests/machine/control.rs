//! A running machine: the machine API and signals.

use std::fs;

use garret_api::vmm::{ExitReason, MachineInfo, MachineState, MemoryInfo, Metrics};
use rustix::process::{Pid, Signal, kill_process};

use crate::stage::{Machine, config};

fn ticking() -> Machine {
    let mut machine = Machine::start(config("while :; do echo tick; sleep 0.1; done"));
    machine.wait_for("tick", 2);
    machine
}

#[test]
fn a_pause_stops_the_guest_and_a_resume_continues_it() {
    let mut machine = ticking();
    for _ in 0..3 {
        machine.post("/v1/pause");
        machine.post("/v1/pause"); // again: nothing happens
        assert_eq!(machine.get::<MachineInfo>("/v1/machine").state, MachineState::Paused);
        let (metrics, console) = (machine.get::<Metrics>("/v1/metrics"), machine.console());
        for _ in 0..20 {
            assert_eq!(machine.get::<Metrics>("/v1/metrics"), metrics);
        }
        assert_eq!(machine.console(), console);
        machine.post("/v1/resume");
        machine.post("/v1/resume");
        assert_eq!(machine.get::<MachineInfo>("/v1/machine").state, MachineState::Running);
        let ticks = console.matches("tick").count();
        machine.wait_for("tick", ticks + 2);
    }
    machine.post("/v1/pause");
    machine.post("/v1/shutdown"); // also possible while paused
    assert_eq!(machine.end().words.reason, ExitReason::Asked);
}

#[test]
fn sigterm_ends_the_machine() {
    let machine = ticking();
    kill_process(Pid::from_raw(machine.pid().cast_signed()).expect("a pid"), Signal::TERM).expect("it is there");
    let end = machine.end();
    assert_eq!((end.words.reason, end.status), (ExitReason::Asked, 0), "{}", end.stderr);
}

#[test]
fn free_pages_return_to_the_host() {
    let mut machine = ticking();
    machine.wait("a report of free pages", |machine| machine.get::<Metrics>("/v1/metrics").reported_free > 0);
    let refused = machine.put::<MemoryInfo>("/v1/memory", &serde_json::json!({ "mib": 1 })).unwrap_err();
    assert_eq!(refused.status(), Some(400));
    assert!(refused.to_string().contains("missing field `requested_mib`"), "{refused}");
    machine.post("/v1/shutdown");
    assert_eq!(machine.end().words.reason, ExitReason::Asked);
}

#[test]
fn every_thread_is_under_its_filter_and_has_gained_nothing() {
    let machine = ticking();
    let mut names = Vec::new();
    for task in fs::read_dir(format!("/proc/{}/task", machine.pid())).expect("it runs") {
        let status = fs::read_to_string(task.expect("a task").path().join("status")).expect("a status");
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).map(str::to_owned);
        let name = field("Name:").expect("a name");
        assert_eq!(field("Seccomp:").as_deref(), Some("2"), "thread {name}");
        assert_eq!(field("NoNewPrivs:").as_deref(), Some("1"), "thread {name}");
        names.push(name);
    }
    for expected in ["garret-vmm", "signals", "api", "vcpu0"] {
        assert!(names.iter().any(|name| name == expected), "{names:?}");
    }
}

#[test]
fn no_device_faults_while_a_guest_boots() {
    let machine = ticking();
    let metrics = machine.get::<Metrics>("/v1/metrics");
    for (name, device) in &metrics.devices {
        assert_eq!(device.faults, 0, "{name}");
    }
    assert!(metrics.devices["console"].chains > 0, "{metrics:?}");
    assert!(metrics.setup_ns > 0 && metrics.exits["io"] > 0, "{metrics:?}");
}
