//! Kills one of the processes that serve a machine.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::case::Victim;
use crate::stage::{Developer, kill, restart_daemon};

/// Someone ready to kill at once.
pub enum Killer {
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
}

/// Prints a line when it is ready and kills the agent when it gets one.
const KILL_AGENT: &str = "for p in /proc/[0-9]*; do \
                          tr '\\0' ' ' < $p/cmdline | grep -q '^garret-agent agent' && agent=${p#/proc/}; done; \
                          echo ready; read -r line && kill -KILL $agent";

impl Killer {
    /// `others`: VMMs of other machines. The agent's killer needs a running machine.
    pub fn prepare(victim: Victim, developer: &Developer, others: &[u64]) -> Self {
        match victim {
            Victim::Daemon => Self::Daemon,
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

    /// Kills. Returns false if there was nothing to kill.
    pub fn strike(self) -> bool {
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
        }
    }
}

/// The process ids of all VMMs on this host.
pub fn vmms() -> Vec<u64> {
    let processes = fs::read_dir("/proc").expect("it is mounted").flatten();
    let is_vmm = |pid: &u64| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "garret-vmm\n");
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_vmm).collect()
}
