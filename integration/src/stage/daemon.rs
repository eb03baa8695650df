//! The daemon: its process, its configuration file and its events.

use super::wait_until;
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::process::Command;

pub const CONFIG: &str = "/etc/garret/config.toml";

/// Returns all events that the host keeps, one JSON object per line.
pub fn events() -> String {
    let address = ["--unix-socket", "/run/garret/garret.sock", "http://garret/v1/events?after=0"];
    let output = Command::new("curl").args(["-sS", "--max-time", "30"]).args(address).output().expect("curl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The process id of the daemon.
pub fn daemon_pid() -> u64 {
    let found = Command::new("pgrep").args(["-o", "-f", "garret daemon$"]).output().expect("pgrep runs");
    String::from_utf8(found.stdout).expect("a number").trim().parse().expect("one daemon")
}

/// Starts the daemon as the host's own service does.
pub fn start_daemon() {
    let status = Command::new("garret-daemon-start").status().expect("the host's own start script");
    assert!(status.success());
}

/// Ends the daemon as a service manager does, within `seconds`.
pub fn end_daemon(seconds: u32) {
    let pid = daemon_pid();
    send(pid, Signal::TERM);
    wait_for_end("the daemon", pid, seconds);
}

/// Waits until the process has ended.
fn wait_for_end(what: &str, pid: u64, seconds: u32) {
    wait_until(&format!("{what} is gone"), seconds, || !Path::new(&format!("/proc/{pid}")).exists());
}

pub fn kill_daemon() {
    let pid = daemon_pid();
    kill(pid);
    wait_for_end("the daemon", pid, 10);
}

/// Kills the daemon and starts it again.
pub fn restart_daemon() {
    kill_daemon();
    start_daemon();
}

pub fn kill(pid: u64) {
    send(pid, Signal::KILL);
}

pub fn send(pid: u64, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}
