//! Machines and environments over time: stop and start, killed VMMs, killed runners, killed agents, guest panics.

use std::fs;
use std::path::Path;

use crate::vmm::{self, power_cuts};
use garret_integration::stage::{ALICE, IMAGE, Workspace, kill, restart_daemon, wait_until};

/// Much less than a guest with a container holds.
const SWAPPED_LEAST: u64 = 64 << 20;

#[test]
fn a_killed_vmm_is_explained_and_restarts_with_its_data() {
    let workspace = Workspace::with_image(ALICE, "killed", r#", "postStartCommand": "echo started >> starts""#);
    workspace.up(&[]).ok();
    workspace.sh("echo kept > ~/kept && sync").ok();
    kill(ALICE.machine()["vmm_pid"].as_u64().unwrap());
    wait_until("the machine is failed", 10, || ALICE.machine()["phase"] == "failed");
    let reason = ALICE.machine()["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("kill") || reason.contains("crash"), "{reason}");
    workspace.exec(&["true"]).fails_with(&["garret start"]);
    // It is as it should be: a stop is no error, and tells why.
    let stopped = ALICE.garret(&["stop", "--machine"]);
    assert!(stopped.stderr.contains("crash") || stopped.stderr.contains("kill"), "{}", stopped.stderr);
    stopped.ok();

    ALICE.garret(&["start", "--machine"]).ok();
    wait_until("the environment is ready again", 120, || workspace.environment()["status"]["phase"] == "ready");
    assert_eq!(workspace.sh("cat ~/kept").ok(), "kept\n");
    assert_eq!(workspace.read("starts"), "started\nstarted\n");
}

#[test]
fn machines_outlive_the_runner_and_the_next_adopts_them() {
    let workspace = Workspace::shared(ALICE);
    workspace.up(&["sh", "-c", "echo $(cat /proc/sys/kernel/random/boot_id) > boot; sleep 1"]).ok();
    let before = ALICE.machine();
    restart_daemon();
    let after = ALICE.machine();
    assert_eq!(before["vmm_pid"], after["vmm_pid"]);
    assert_eq!(after["phase"], "running");
    let boot = workspace.sh("cat /proc/sys/kernel/random/boot_id").ok();
    assert_eq!(boot, workspace.read("boot"), "the machine was restarted");
    // The adopted machine is watched like any other.
    kill(after["vmm_pid"].as_u64().unwrap());
    wait_until("the machine is failed", 10, || ALICE.machine()["phase"] == "failed");
    ALICE.garret(&["start", "--machine"]).ok();
}

#[test]
fn containers_and_exec_outlive_the_agent() {
    let workspace = Workspace::shared(ALICE);
    workspace.up(&[]).ok();
    let started = workspace.sh("stat -c %Y /proc/1").ok();
    let agent = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline | grep -q '^garret-agent agent' && echo ${p#/proc/}; done; true";
    let before = ALICE.guest(agent).ok();
    assert_eq!(before.lines().count(), 1, "{before}");
    // The connection dies with the agent: the status says nothing here.
    ALICE.guest(&format!("kill -KILL {}", before.trim()));
    wait_until("exec works again", 30, || workspace.exec(&["true"]).status == 0);
    assert_ne!(ALICE.guest(agent).ok(), before);
    assert_eq!(workspace.sh("stat -c %Y /proc/1").ok(), started, "the container was restarted");
}

/// As when the machine loses its power while podman makes a container: the layers are on the disk and the entry is not.
#[test]
fn a_container_that_was_half_made_is_no_obstacle() {
    let workspace = Workspace::with_image(ALICE, "half", "");
    workspace.up(&[]).ok();
    let id = workspace.environment()["id"].as_str().unwrap().to_owned();
    ALICE.garret(&["rm", workspace.str()]).ok();
    let half = "cd /data/containers/storage && cp db.sql before.sql && podman create --name";
    ALICE.guest(&format!("{half} garret-{id} {IMAGE} && mv before.sql db.sql")).ok();
    workspace.up(&["true"]).ok();
}

#[test]
fn a_guest_panic_is_reported_as_one() {
    let workspace = Workspace::shared(ALICE);
    workspace.up(&[]).ok();
    ALICE.guest("echo c > /proc/sysrq-trigger");
    wait_until("the machine is failed", 30, || ALICE.machine()["phase"] == "failed");
    let reason = ALICE.machine()["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("panic"), "{reason}");
    let log = ALICE.garret(&["logs", "--machine"]).ok();
    assert!(log.contains("sysrq triggered crash"), "{log}");
    ALICE.garret(&["start", "--machine"]).ok();
}

#[test]
fn several_environments_start_and_end_with_files_open() {
    let first = Workspace::with_image(ALICE, "first", "");
    let second = Workspace::with_image(ALICE, "second", "");
    first.up(&[]).ok();
    let pid = ALICE.machine()["vmm_pid"].clone();
    second.up(&["sh", "-c", "echo two > here"]).ok();
    assert_eq!(ALICE.machine()["vmm_pid"], pid, "one machine per developer");
    // A process in the second container holds a file of its workspace open while `rm` removes the environment.
    second.sh("nohup tail -f here >/dev/null 2>&1 & sleep 0.2").ok();
    ALICE.garret(&["rm", second.str()]).ok();
    assert_eq!(second.read("here"), "two\n");
    let shared = fs::read_dir(ALICE.run_folder().join("workspaces")).unwrap().count();
    let environments = ALICE.json(&["ls"])["environments"].as_array().unwrap().len();
    assert_eq!(shared, environments, "a removed workspace is still shared");
    first.exec(&["true"]).ok();
}

#[test]
fn stopping_leaves_nothing_running_and_starting_brings_all_back() {
    let workspace = Workspace::with_image(ALICE, "cycle", "");
    workspace.up(&["sh", "-c", "echo data > ~/data"]).ok();
    let (pid, cuts) = (vmm::pid(ALICE), power_cuts());
    // A guest that has to be swapped in again is slow, and is waited for.
    let swapped = vmm::swap_out(ALICE);
    assert!(swapped >= SWAPPED_LEAST, "{swapped} bytes are swapped out");
    ALICE.garret(&["stop", "--machine"]).ok();
    assert_eq!((ALICE.machine()["phase"].as_str(), power_cuts()), (Some("stopped"), cuts));
    assert!(!vmm::exists(pid));
    let id = ALICE.machine_id();
    let folder = format!("/run/garret/machines/{id}");
    let socket = format!("{folder}/api.sock");
    for leftover in [format!("/sys/fs/cgroup/garret/{id}"), format!("/run/netns/garret-{id}"), socket] {
        assert!(!Path::new(&leftover).exists(), "{leftover} was left behind");
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(mounts.contains(&folder), "its folder is a mount: {mounts}");
    assert!(!mounts.contains(&format!("{folder}/")), "{mounts}");
    ALICE.garret(&["start", "--machine"]).ok();
    wait_until("the environment is ready again", 120, || workspace.environment()["status"]["phase"] == "ready");
    assert_eq!(workspace.sh("cat ~/data").ok(), "data\n");
    let operations = ALICE.json(&["operations"]);
    let of_machine = operations.as_array().unwrap().iter().filter(|one| one["environment"].is_null());
    let ended: Vec<_> = of_machine.take(2).map(|one| (&one["kind"], &one["outcome"]["result"])).collect();
    assert_eq!(ended, [(&"start".into(), &"succeeded".into()), (&"stop".into(), &"succeeded".into())]);
}
