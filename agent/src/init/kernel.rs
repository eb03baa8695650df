//! Kernel settings, resource limits and cgroups of the guest.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::Context;
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, setrlimit};

use super::promise;

const CGROUPS: &str = "/sys/fs/cgroup";

/// Settings that development containers need and that the kernel's defaults lack, and the usual protections.
const SYSCTLS: &[(&str, &str)] = &[
    // File watchers of editors and bundlers.
    ("fs/inotify/max_user_instances", "8192"),
    // Kept if the promised memory is unknown; see `promise`.
    ("fs/inotify/max_user_watches", "524288"),
    ("fs/protected_fifos", "1"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_regular", "2"),
    ("fs/protected_symlinks", "1"),
    ("kernel/keys/maxbytes", "2000000"),
    ("kernel/keys/maxkeys", "20000"),
    // The largest possible value; `kernel/threads-max` is the effective limit.
    ("kernel/pid_max", "4194304"),
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    // Plugging takes 2 MiB of the reserves at a time; with 512 MiB of memory, Linux by default reserves less than 3
    // MiB.
    ("vm/min_free_kbytes", "8192"),
    // Kept if the promised memory is unknown; see `promise`.
    ("vm/max_map_count", "262144"),
    // Swap is compressed memory: reads are cheap, and read-ahead only costs time.
    ("vm/page-cluster", "0"),
    ("vm/swappiness", "100"),
];

/// cgroup files of the agent and of interactive commands: they get CPU time first, and their memory is reclaimed last.
/// The memory loop sets the containers' protection, because it grows with memory.
const GARRET: &[(&str, &str)] = &[("cpu.weight", "1000"), ("memory.min", "33554432"), ("memory.low", "134217728")];

/// Sets the hard limits that every container inherits. The defaults (4096 files; signals and timers according to the
/// memory at boot) are far too small for containers.
pub(super) fn set_rlimits() {
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

/// Applies the settings that are the same in every machine.
pub(super) fn sysctls() {
    SYSCTLS.iter().for_each(|(name, value)| set(name, value));
}

/// Applies the limits that depend on the promised memory.
pub(super) fn follow_promise() -> anyhow::Result<()> {
    let mib = promise::promised_mib()?;
    promise::sysctls_for(mib).iter().for_each(|(name, value)| set(name, value));
    super::mounts::resize_in_memory(mib)
}

/// Writes one setting. A setting that this kernel lacks is reported and skipped.
fn set(name: &str, value: &str) {
    if let Err(error) = fs::write(Path::new("/proc/sys").join(name), value) {
        super::say(format_args!("sysctl {name}: {error}"));
    }
}

/// Creates `garret/agent` and `garret/exec` for the agent and its commands. Containers have their own groups with
/// normal weights at the top level.
pub(super) fn cgroups() -> anyhow::Result<()> {
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

/// Enables every available controller for the groups below `folder`.
fn delegate(folder: &Path) -> anyhow::Result<()> {
    let controllers = fs::read_to_string(folder.join("cgroup.controllers")).context("cgroup.controllers")?;
    for controller in controllers.split_whitespace() {
        let control = folder.join("cgroup.subtree_control");
        fs::write(control, format!("+{controller}")).with_context(|| format!("cgroup controller {controller}"))?;
    }
    Ok(())
}

/// Moves the agent into its cgroup.
pub(super) fn enter_agent_cgroup(pid: Pid) -> io::Result<()> {
    fs::write(Path::new(CGROUPS).join("garret/agent/cgroup.procs"), pid.to_string())
}
