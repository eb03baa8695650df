//! One control group (v2) per machine: `/sys/fs/cgroup/garret/<id>`.
//!
//! The groups are beside the service manager's own groups, not below the daemon's unit. Stopping or restarting the unit
//! therefore does not affect them. The rule that a group with processes delegates no controllers does not apply either.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use garret_api::MachineId;

const ROOT: &str = "/sys/fs/cgroup";
const CONTROLLERS: &str = "+cpu +io +memory +pids";
/// Threads of one VMM: vCPUs, queue workers, virtio-fs pools.
const PIDS_MAX: u32 = 512;
/// How much one write to `memory.reclaim` requests, in bytes. The elapsed time is checked between two writes.
const RECLAIM_PIECE: u64 = 64 << 20;
/// How long one call of [`reclaim`] may take in total.
const RECLAIM_TIME: Duration = Duration::from_secs(5);

/// The machine's group.
pub fn path(machine: MachineId) -> PathBuf {
    group().join(machine.as_str())
}

fn group() -> PathBuf {
    Path::new(ROOT).join("garret")
}

/// Creates the group that holds all machines.
pub fn prepare() -> anyhow::Result<()> {
    if !Path::new(ROOT).join("cgroup.controllers").exists() {
        bail!("{ROOT} is not a cgroup v2 hierarchy: boot the host with systemd.unified_cgroup_hierarchy=1");
    }
    write(&Path::new(ROOT).join("cgroup.subtree_control"), CONTROLLERS)?;
    fs::create_dir_all(group()).context("cannot make the machines' control group")?;
    write(&group().join("cgroup.subtree_control"), CONTROLLERS)?;
    protect_all()
}

/// Creates the machine's group with its limits. `memory_max` is in bytes.
pub fn create(machine: MachineId, memory_max: u64) -> anyhow::Result<()> {
    let path = path(machine);
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    write(&path.join("memory.max"), &memory_max.to_string())?;
    write(&path.join("pids.max"), &PIDS_MAX.to_string())
}

/// The memory that a machine's group holds, and the CPU time it has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Memory that only swap can replace (anonymous and shared), in bytes.
    pub resident: u64,
    /// Swapped-out memory, in bytes; 0 if the kernel does not count it.
    pub swapped: u64,
    /// CPU time since the group was created.
    pub cpu: Duration,
}

/// Reads the group's memory and CPU time.
///
/// # Errors
/// The group is gone.
pub fn usage(machine: MachineId) -> io::Result<Usage> {
    let folder = path(machine);
    let stat = fs::read_to_string(folder.join("memory.stat"))?;
    let cpu = fs::read_to_string(folder.join("cpu.stat"))?;
    let swapped = fs::read_to_string(folder.join("memory.swap.current")).unwrap_or_default();
    Ok(Usage {
        resident: figure(&stat, "anon") + figure(&stat, "shmem"),
        swapped: swapped.trim().parse().unwrap_or(0),
        cpu: Duration::from_micros(figure(&cpu, "usage_usec")),
    })
}

/// Protects this much of the machine's memory, in bytes, from reclaim while the host has other memory to reclaim.
///
/// # Errors
/// The group is gone.
pub fn protect(machine: MachineId, bytes: u64) -> anyhow::Result<()> {
    write(&path(machine).join("memory.low"), &bytes.to_string())?;
    protect_all()
}

/// A group's protection counts only up to that of its parent group. If the parent has more than the sum of its
/// children, the rest is distributed among them (`memory_recursiveprot`), which would protect everything. So the parent
/// gets exactly the sum.
fn protect_all() -> anyhow::Result<()> {
    let groups = fs::read_dir(group()).context("cannot list the machines' control groups")?;
    // A group may be removed at the same time.
    let low = |folder: PathBuf| fs::read_to_string(folder.join("memory.low")).ok()?.trim().parse::<u64>().ok();
    let sum: u64 = groups.flatten().filter_map(|entry| low(entry.path())).sum();
    write(&group().join("memory.low"), &sum.to_string())
}

/// Swaps out up to `bytes` of the machine's memory. Blocks for some seconds at most. It is no error if less can be
/// reclaimed.
///
/// # Errors
/// The group is gone, or the kernel cannot do it (Linux before 5.19).
pub fn reclaim(machine: MachineId, bytes: u64) -> anyhow::Result<()> {
    let path = path(machine).join("memory.reclaim");
    let mut file = File::options()
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot reclaim by {}: Linux 5.19 or later is required", path.display()))?;
    let (until, mut left) = (Instant::now() + RECLAIM_TIME, bytes);
    while left > 0 && Instant::now() < until {
        let piece = left.min(RECLAIM_PIECE);
        match reclaim_piece(&mut file, piece) {
            Ok(()) => left -= piece,
            // The kernel found less than requested: there is no more to reclaim for now.
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("cannot write {piece} to {}", path.display())),
        }
    }
    Ok(())
}

/// Reclaims anonymous memory first, if the kernel supports that: losing the cache of the data disk costs the guest
/// more.
fn reclaim_piece(file: &mut File, bytes: u64) -> io::Result<()> {
    match file.write(format!("{bytes} swappiness=200").as_bytes()) {
        Err(error) if error.kind() == ErrorKind::InvalidInput => file.write(bytes.to_string().as_bytes()).map(drop),
        written => written.map(drop),
    }
}

/// Kills the remaining processes in the machine's group and removes the group.
pub fn remove(machine: MachineId) -> anyhow::Result<()> {
    let path = path(machine);
    if !path.exists() {
        return Ok(());
    }
    write(&path.join("cgroup.kill"), "1")?;
    wait_until_empty(&path)?;
    match fs::remove_dir(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => protect_all(),
    }
}

/// How many processes of this machine the kernel killed for lack of memory; 0 if the group is gone.
pub fn oom_kills(machine: MachineId) -> u64 {
    fs::read_to_string(path(machine).join("memory.events")).map(|text| figure(&text, "oom_kill")).unwrap_or(0)
}

/// One figure of a flat-keyed file; 0 if it is missing.
fn figure(text: &str, name: &str) -> u64 {
    let mut values = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok());
    values.next().unwrap_or(0)
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
    fn figures_are_found_by_their_whole_name() {
        let text = "low 0\nhigh 3\nmax 4\noom 2\noom_kill 1\noom_group_kill 0\n";
        assert_eq!((figure(text, "oom_kill"), figure(text, "oom"), figure(text, "high")), (1, 2, 3));
        assert_eq!((figure("", "oom"), figure("oom x\n", "oom"), figure("anon_thp 7\nanon 9\n", "anon")), (0, 0, 9));
    }
}
