//! Kernel limits follow the promise, not the 512 MiB a guest boots with.

mod rates;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use garret_integration::stage::{ALICE, Workspace};

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
    let mut proceed = holder.stdin.take().expect("piped");
    for kind in ["threads", "files", "connections"] {
        let mut line = String::new();
        said.read_line(&mut line).expect("it says");
        assert_eq!(line.trim(), kind);
        // All are held from here on.
        if kind == "connections" {
            assert_counts();
        }
        proceed.write_all(b"\n").expect("it reads");
    }
    guest("sysctl -q -w net.netfilter.nf_conntrack_udp_timeout=30");
    assert!(holder.wait().expect("it ends").success());
}
