//! Kills one of the processes that serve a machine, or fills the host's disk.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::case::Victim;
use garret_integration::stage::{Developer, kill, restart_daemon};

/// Is prepared in advance, so that it kills its victim at once.
pub(crate) enum Killer {
    Daemon,
    /// VMMs that were there before belong to others.
    Vmm {
        others: Vec<u64>,
    },
    /// A shell in the guest that waits for a line.
    Agent {
        shell: Child,
        input: ChildStdin,
    },
    Space,
}

/// On the file system of the state and the data disks.
const FILLER: &str = "/var/lib/campaign-filler";
/// For how long the disk is full at most. What has to be written before a command can end waits for space.
const FULL_FOR_AT_MOST: Duration = Duration::from_secs(10);
/// For how long it is full at least: the daemon writes some things after a command has ended.
const FULL_FOR_AT_LEAST: Duration = Duration::from_secs(2);

/// Prints a line when it is ready and kills the agent when it gets one.
const KILL_AGENT: &str = "for p in /proc/[0-9]*; do \
                          tr '\\0' ' ' < $p/cmdline | grep -q '^garret-agent agent' && agent=${p#/proc/}; done; \
                          echo ready; read -r line && kill -KILL $agent";

impl Killer {
    /// `others`: VMMs of other machines. The agent's killer needs a running machine.
    pub(crate) fn prepare(victim: Victim, developer: &Developer, others: &[u64]) -> Self {
        match victim {
            Victim::Daemon => Self::Daemon,
            Victim::Space => Self::Space,
            Victim::Vmm => Self::Vmm { others: others.to_vec() },
            Victim::Agent => {
                let mut shell = Command::new("garret")
                    .args(["exec", "--machine", "--", "sh", "-c", KILL_AGENT])
                    .uid(developer.uid)
                    .gid(developer.uid)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("garret runs");
                let mut line = String::new();
                BufReader::new(shell.stdout.take().expect("piped")).read_line(&mut line).expect("it reads");
                assert_eq!(line, "ready\n", "no shell in the guest");
                let input = shell.stdin.take().expect("piped");
                Self::Agent { shell, input }
            }
        }
    }

    /// Kills, or fills the disk and makes space again when the command has ended. Returns false if there was nothing to kill.
    pub(crate) fn strike(self, ended: impl Fn() -> bool) -> bool {
        match self {
            Self::Daemon => {
                restart_daemon();
                true
            }
            Self::Vmm { others } => {
                let Some(pid) = vmms().into_iter().find(|pid| !others.contains(pid)) else { return false };
                kill(pid);
                true
            }
            Self::Agent { mut shell, mut input } => {
                // The machine may have stopped meanwhile, and the shell with it.
                let sent = input.write_all(b"now\n").is_ok();
                drop(input);
                let _status_of_a_lost_connection = shell.wait();
                sent
            }
            Self::Space => {
                fill_disk();
                let since = Instant::now();
                while since.elapsed() < FULL_FOR_AT_LEAST || !ended() && since.elapsed() < FULL_FOR_AT_MOST {
                    thread::sleep(Duration::from_millis(20));
                }
                fs::remove_file(FILLER).expect("it is there");
                true
            }
        }
    }
}

/// Takes all space there is, down to the last block.
fn fill_disk() {
    let file = File::create(FILLER).expect("a file");
    let (mut length, mut piece) = (0, 1 << 40);
    while piece >= 4096 {
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), length, piece) {
            Ok(()) => length += piece,
            Err(Errno::NOSPC | Errno::FBIG) => piece /= 2,
            Err(error) => panic!("cannot fill the disk: {error}"),
        }
    }
}

/// The process ids of all VMMs on this host.
pub(crate) fn vmms() -> Vec<u64> {
    let processes = fs::read_dir("/proc").expect("it is mounted").flatten();
    let is_vmm = |pid: &u64| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "garret-vmm\n");
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_vmm).collect()
}
