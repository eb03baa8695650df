use std::fs;
use std::io;
use std::path::Path;

use anyhow::Context;
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, setrlimit};

use super::promise;

const CGROUPS: &str = "/sys/fs/cgroup";

/// Settings that development containers need and the kernel's defaults withhold, and the usual protections.
const SYSCTLS: &[(&str, &str)] = &[
    // File watchers of editors and bundlers.
    ("fs/inotify/max_user_instances", "8192"),
    ("fs/inotify/max_user_watches", "1048576"),
    ("fs/protected_fifos", "1"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_regular", "2"),
    ("fs/protected_symlinks", "1"),
    ("kernel/keys/maxbytes", "2000000"),
    ("kernel/keys/maxkeys", "20000"),
    // The most there can be; `kernel/threads-max` is the limit.
    ("kernel/pid_max", "4194304"),
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    // Databases map many files.
    ("vm/max_map_count", "1048576"),
    // Plugging takes 2 MiB of the reserves at a time; of 512 MiB, Linux keeps less than 3.
    ("vm/min_free_kbytes", "8192"),
    // Swap is compressed memory: cheap, and read-ahead only costs.
    ("vm/page-cluster", "0"),
    ("vm/swappiness", "100"),
];

/// cgroup files of the agent and of interactive commands: first when the CPU is short, last when memory is. What protects
/// containers is with the memory loop, for it grows with memory.
const GARRET: &[(&str, &str)] = &[("cpu.weight", "1000"), ("memory.min", "33554432"), ("memory.low", "134217728")];

/// Every container inherits the hard limits; the defaults (4096 files, signals and timers by the memory at boot) are far too
/// small for them.
pub fn set_rlimits() {
    let limit = |soft: Option<u64>, hard: Option<u64>| Rlimit { current: soft, maximum: hard };
    let limits = [
        (Resource::Nofile, limit(Some(65_536), Some(1_048_576))),
        (Resource::Nproc, limit(None, None)),
        (Resource::Sigpending, limit(None, None)),
        (Resource::Memlock, limit(Some(64 << 20), Some(64 << 20))),
    ];
    for (resource, limit) in limits {
        if let Err(error) = setrlimit(resource, limit) {
            super::say(format_args!("limit {resource:?}: {error}"));
        }
    }
}

/// The settings that every machine has.
pub fn sysctls() {
    SYSCTLS.iter().for_each(|(name, value)| set(name, value));
}

/// The limits that follow the promised memory.
pub fn follow_promise() -> anyhow::Result<()> {
    let mib = promise::promised_mib()?;
    promise::sysctls_for(mib).iter().for_each(|(name, value)| set(name, value));
    super::mounts::resize_in_memory(mib)
}

/// A setting this kernel lacks is reported and left out.
fn set(name: &str, value: &str) {
    if let Err(error) = fs::write(Path::new("/proc/sys").join(name), value) {
        super::say(format_args!("sysctl {name}: {error}"));
    }
}

/// `garret/agent` and `garret/exec` for us; containers have their own groups with normal weights at the top.
pub fn cgroups() -> anyhow::Result<()> {
    let top = Path::new(CGROUPS);
    let garret = top.join("garret");
    delegate(top)?;
    for folder in [&garret, &garret.join("agent"), &garret.join("exec")] {
        fs::create_dir(folder).with_context(|| folder.display().to_string())?;
    }
    delegate(&garret)?;
    for (name, value) in GARRET {
        fs::write(garret.join(name), value).with_context(|| format!("cgroup {name}"))?;
    }
    Ok(())
}

/// Gives every controller there is to the groups below.
fn delegate(folder: &Path) -> anyhow::Result<()> {
    let controllers = fs::read_to_string(folder.join("cgroup.controllers")).context("cgroup.controllers")?;
    for controller in controllers.split_whitespace() {
        let control = folder.join("cgroup.subtree_control");
        fs::write(control, format!("+{controller}")).with_context(|| format!("cgroup controller {controller}"))?;
    }
    Ok(())
}

/// Moves the agent where it belongs.
pub fn enter_agent_cgroup(pid: Pid) -> io::Result<()> {
    fs::write(Path::new(CGROUPS).join("garret/agent/cgroup.procs"), pid.to_string())
}
