//! The host's connection table. All machines and the host share it, so it must hold the connections that all of them
//! may have. The limit of its size holds for the tables of the machines' namespaces, too.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use super::rules::NEW_CONNECTIONS_PER_S;

/// Connections that remain for the host itself when every machine uses all of its own.
const HOST_CONNECTIONS: u64 = 65_536;
/// How long a closed TCP connection stays in the table, in seconds; it is no longer counted against its machine.
const CLOSED_S: u64 = 120;
/// Kernel memory of one connection, in bytes, including its bucket: it is in the namespace's table and in the host's.
const CONNECTION_BYTES: u64 = 2 * 384;
/// Full tables may use one part in this many of the host's memory.
const MEMORY_PART: u64 = 16;
/// Entries per bucket of a full table.
const BUCKET_ENTRIES: u64 = 4;

/// Raises the limit of the host's table to what this many machines need. It is never lowered.
///
/// # Errors
/// The kernel does not track connections, or refuses the size.
pub(super) fn make_room(machines: u64, connections_max: u32) -> anyhow::Result<()> {
    let info = rustix::system::sysinfo();
    let entries = entries(machines, connections_max, info.totalram * u64::from(info.mem_unit));
    // Buckets first: many entries in few buckets are slow.
    raise("nf_conntrack_buckets", entries / BUCKET_ENTRIES)?;
    raise("nf_conntrack_max", entries)
}

/// The arguments of `conntrack` before the addresses.
pub(super) const FORGET: [&str; 4] = ["-D", "-f", "ipv4", "-s"];

/// Deletes the connections that came from these addresses. They outlive their machine by days, and would count against
/// the next machine with its address.
///
/// # Errors
/// `conntrack` is missing.
pub(super) fn forget(addresses: &str) -> anyhow::Result<()> {
    let output = Command::new("conntrack").args(FORGET).arg(addresses).output();
    let output = output.context("cannot run `conntrack`: is its Debian package installed?")?;
    match output.status.code() {
        // 1: there were no connections, or the kernel does not track connections yet.
        Some(0 | 1) => Ok(()),
        _ => bail!("`conntrack` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim()),
    }
}

/// The table's size for this many machines. It grows by doubling, so that the table is seldom rebuilt.
fn entries(machines: u64, connections_max: u32, memory_bytes: u64) -> u64 {
    let one_machine = u64::from(connections_max) + u64::from(NEW_CONNECTIONS_PER_S) * CLOSED_S;
    let all = HOST_CONNECTIONS + machines * one_machine;
    all.next_power_of_two().min(memory_bytes / MEMORY_PART / CONNECTION_BYTES)
}

fn raise(name: &str, wanted: u64) -> anyhow::Result<()> {
    let path = Path::new("/proc/sys/net/netfilter").join(name);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let now: u64 = text.trim().parse().with_context(|| format!("{} is not a number", path.display()))?;
    if now < wanted {
        fs::write(&path, wanted.to_string()).with_context(|| format!("cannot set {} to {wanted}", path.display()))?;
        tracing::info!("{name} raised from {now} to {wanted}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn all_machines_and_the_host_fit_into_the_table() {
        for (machines, entries_expected) in [(0, 65_536), (1, 262_144), (2, 262_144), (3, 524_288), (200, 16_777_216)] {
            assert_eq!(entries(machines, 8192, 512 * GIB), entries_expected, "{machines}");
        }
    }

    #[test]
    fn a_full_table_leaves_a_small_host_its_memory() {
        let entries = entries(10_000, 8192, GIB);
        assert!(entries * CONNECTION_BYTES <= GIB / MEMORY_PART && entries > HOST_CONNECTIONS, "{entries}");
    }
}
