//! A guest boots with 512 MiB, yet all of its promise is there when it is wanted: kernel limits follow the promise, and programs
//! that grow faster than memory is plugged wait for it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::stage::{ALICE, Developer, Workspace};

/// A line in the machine itself, as root.
fn guest(line: &str) -> String {
    ALICE.garret(&["exec", "--machine", "--", "sh", "-c", line]).ok()
}

/// What the guest's kernel counts, all at once.
#[track_caller]
fn assert_counts() {
    for (kind, count, least) in [
        ("threads", "cut -d/ -f2 /proc/loadavg | cut -d' ' -f1", 20_000),
        ("files", "cut -f1 /proc/sys/fs/file-nr", 200_000),
        ("connections", "cat /proc/sys/net/netfilter/nf_conntrack_count", 65_536),
    ] {
        let count: u64 = guest(count).trim().parse().expect("a number");
        assert!(count >= least, "{count} {kind}, not {least}");
    }
}

#[test]
fn threads_files_and_connections_fit_the_promise() {
    let workspace = Workspace::shared(ALICE);
    workspace.up(&[]).ok();
    let promised = ALICE.machine()["memory_mib"].as_u64().expect("a promise");
    assert!(
        promised >= 3900,
        "the machine needs a promise of about 4 GiB, not {promised} MiB: set `[machine] memory_mib`"
    );
    workspace.write("hold.py", include_str!("hold.py"));
    // An entry without an answer lives 30 s, less than it takes to make all of them on an emulated host.
    guest("sysctl -q -w net.netfilter.nf_conntrack_udp_timeout=120");

    let mut holder = Command::new("garret")
        .args(["exec", workspace.str(), "--", "python3", "hold.py"])
        .uid(ALICE.uid)
        .gid(ALICE.uid)
        .env("HOME", "/home/alice")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("garret runs");
    let mut said = BufReader::new(holder.stdout.take().expect("piped"));
    let mut go_on = holder.stdin.take().expect("piped");
    for kind in ["threads", "files", "connections"] {
        let mut line = String::new();
        said.read_line(&mut line).expect("it says");
        assert_eq!(line.trim(), kind);
        // All are held from here on.
        if kind == "connections" {
            assert_counts();
        }
        go_on.write_all(b"\n").expect("it reads");
    }
    guest("sysctl -q -w net.netfilter.nf_conntrack_udp_timeout=30");
    assert!(holder.wait().expect("it ends").success());
}

/// The driver, whose `load` takes memory and checks every byte of it.
const DRIVER: &str = "/run/host/programs/garret-integration";

#[test]
fn burst_that_outruns_plugging_ends_no_program() {
    const CAROL: Developer = Developer { name: "carol", uid: 1003 };
    CAROL.make_account();
    CAROL.garret(&["start", "--machine", "--memory", "6000"]).ok();
    let in_machine =
        |line: &str, input: &[u8]| CAROL.garret_with(&["exec", "--machine", "--", "sh", "-c", line], &[], input).ok();
    in_machine("cat > /data/load; chmod 755 /data/load", &fs::read(DRIVER).expect("the host's programs"));
    let loads = in_machine("for i in $(seq 12); do /data/load load 400 --hold 1 & done; wait", b"");
    let right = loads.lines().filter(|line| line.starts_with("right: ")).count();
    let log = in_machine("dmesg | grep -e virtio_mem -e oom-kill -e Killed || true", b"");
    assert_eq!(right, 12, "{loads}{log}");
    CAROL.garret(&["rm", "--machine", "--yes"]).ok();
}
