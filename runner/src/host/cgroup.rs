//! One control group (v2) per machine: `/sys/fs/cgroup/garret/<machine>`.
//!
//! They lie beside the service manager's own groups, not below the daemon's unit: stopping or restarting the unit then
//! has nothing to do with them, and the rule that a group with processes delegates no controllers is never in the way.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

const ROOT: &str = "/sys/fs/cgroup";
const CONTROLLERS: &str = "+cpu +io +memory +pids";
/// Threads of one VMM: vCPUs, queue workers, virtio-fs pools.
const PIDS_MAX: u32 = 512;

/// The machine's group.
pub fn path(name: &str) -> PathBuf {
    group().join(name)
}

fn group() -> PathBuf {
    Path::new(ROOT).join("garret")
}

/// Makes the group that holds all machines.
pub fn prepare() -> anyhow::Result<()> {
    if !Path::new(ROOT).join("cgroup.controllers").exists() {
        bail!("{ROOT} is not a cgroup v2 hierarchy: boot the host with systemd.unified_cgroup_hierarchy=1");
    }
    write(&Path::new(ROOT).join("cgroup.subtree_control"), CONTROLLERS)?;
    fs::create_dir_all(group()).context("cannot make the machines' control group")?;
    write(&group().join("cgroup.subtree_control"), CONTROLLERS)
}

/// Makes the machine's group with its limits. `memory_max` is in bytes.
pub fn create(name: &str, memory_max: u64) -> anyhow::Result<()> {
    let path = path(name);
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    write(&path.join("memory.max"), &memory_max.to_string())?;
    write(&path.join("pids.max"), &PIDS_MAX.to_string())
}

/// Kills what is left in the machine's group and removes it.
pub fn remove(name: &str) -> anyhow::Result<()> {
    let path = path(name);
    if !path.exists() {
        return Ok(());
    }
    write(&path.join("cgroup.kill"), "1")?;
    wait_until_empty(&path)?;
    match fs::remove_dir(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// How many processes of this machine the kernel killed for lack of memory; 0 if the group is gone.
pub fn oom_kills(name: &str) -> u64 {
    fs::read_to_string(path(name).join("memory.events")).map(|text| oom_kills_in(&text)).unwrap_or(0)
}

fn oom_kills_in(memory_events: &str) -> u64 {
    memory_events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

/// `cgroup.events` is pollable: it signals `POLLPRI` when `populated` changes.
fn wait_until_empty(path: &Path) -> anyhow::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    const DEADLINE: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
    let file = fs::File::open(path.join("cgroup.events"))?;
    loop {
        if std::io::read_to_string(&file)?.contains("populated 0") {
            return Ok(());
        }
        if poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&DEADLINE))? == 0 {
            bail!("a process in {} does not die", path.display());
        }
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    }
}

fn write(path: &Path, value: &str) -> anyhow::Result<()> {
    fs::write(path, value).with_context(|| format!("cannot write `{value}` to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_only_oom_kills() {
        assert_eq!(oom_kills_in("low 0\nhigh 3\nmax 4\noom 2\noom_kill 1\noom_group_kill 0\n"), 1);
        assert_eq!(oom_kills_in(""), 0);
    }
}
