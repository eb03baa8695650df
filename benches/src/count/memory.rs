//! Memory of processes, from `/proc/PID/smaps`, by purpose.

use std::fs;

use anyhow::Context;

use crate::subject::Running;

/// Bytes of one or several processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Private pages of the VMM and its servers, without guest memory and the root image.
    pub own_private: u64,
    /// Guest memory that the host holds.
    pub guest_resident: u64,
    /// All resident pages. Shared pages count in full.
    pub resident: u64,
    /// All private pages: the memory that would be free without the machine.
    pub private: u64,
    /// All resident pages, each divided by the number of its users.
    pub proportional: u64,
}

impl Memory {
    fn plus(self, other: Self) -> Self {
        Self {
            own_private: self.own_private + other.own_private,
            guest_resident: self.guest_resident.max(other.guest_resident), // a server maps the same pages once more
            resident: self.resident + other.resident,
            private: self.private + other.private,
            proportional: self.proportional + other.proportional,
        }
    }
}

/// The memory of all processes of a machine with this much guest memory.
///
/// # Errors
/// A process has ended.
pub(crate) fn of(running: &Running, guest_bytes: u64) -> anyhow::Result<Memory> {
    running.pids().into_iter().try_fold(Memory::default(), |sum, pid| {
        let smaps = fs::read(format!("/proc/{pid}/smaps")).with_context(|| format!("memory of process {pid}"))?;
        Ok(sum.plus(parse(&String::from_utf8_lossy(&smaps), guest_bytes)))
    })
}

/// Resident memory of one process, from a counter that the kernel keeps: for a curve over time. Each CPU of the host
/// may lag by about 100 KiB.
///
/// # Errors
/// The process has ended.
pub(crate) fn resident(pid: u32) -> anyhow::Result<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).with_context(|| format!("memory of {pid}"))?;
    // proc_pid_statm(5): the second field, in pages.
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).context("statm")?;
    Ok(pages * rustix::param::page_size() as u64)
}

#[derive(Clone, Copy, PartialEq)]
enum For {
    Guest,
    Root,
    Own,
}

/// Guest memory is a mapping at least as large as the guest, without a file or in a memory file.
fn purpose(header: &str, guest_bytes: u64) -> Option<For> {
    let mut words = header.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    let name = words.nth(4).unwrap_or("");
    let in_memory = name.is_empty() || name.starts_with("/memfd:") || name.starts_with("[anon");
    Some(match () {
        () if name.ends_with(".erofs") => For::Root,
        () if in_memory && end - start >= guest_bytes => For::Guest,
        () => For::Own,
    })
}

fn parse(smaps: &str, guest_bytes: u64) -> Memory {
    let mut memory = Memory::default();
    let mut is_for = For::Own;
    for line in smaps.lines() {
        if let Some(purpose) = purpose(line, guest_bytes) {
            is_for = purpose;
            continue;
        }
        let private = sized(line, "Private_Clean:").or_else(|| sized(line, "Private_Dirty:")).unwrap_or(0);
        memory.private += private;
        if is_for == For::Own {
            memory.own_private += private;
        }
        let resident = sized(line, "Rss:").unwrap_or(0);
        memory.resident += resident;
        if is_for == For::Guest {
            memory.guest_resident += resident;
        }
        memory.proportional += sized(line, "Pss:").unwrap_or(0);
    }
    memory
}

/// Parses `Name:   12 kB` to bytes.
fn sized(line: &str, name: &str) -> Option<u64> {
    let kib: u64 = line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
00400000-00500000 r-xp 00000000 fe:00 123                                /usr/lib/garret/garret-vmm
Rss:                 800 kB
Pss:                 400 kB
Private_Clean:       100 kB
Private_Dirty:        20 kB
7f0000000000-7f0020000000 rw-p 00000000 00:00 0
Rss:              100000 kB
Pss:              100000 kB
Private_Clean:         0 kB
Private_Dirty:    100000 kB
7f1000000000-7f1010000000 rw-p 00000000 fe:00 124                        /usr/lib/garret/root.erofs
Rss:               50000 kB
Pss:               10000 kB
Private_Clean:         0 kB
Private_Dirty:        64 kB
7f2000000000-7f2000010000 rw-p 00000000 00:00 0                          [stack]
Rss:                  16 kB
Pss:                  16 kB
Private_Dirty:        16 kB
VmFlags: rd wr mr
";

    #[test]
    fn memory_is_divided_by_purpose() {
        let memory = parse(SMAPS, 512 << 20);
        let kib = |kib: u64| kib << 10;
        assert_eq!(
            memory,
            Memory {
                own_private: kib(136),
                guest_resident: kib(100_000),
                resident: kib(150_816),
                private: kib(100_200),
                proportional: kib(110_416),
            }
        );
        let both = memory.plus(memory);
        assert_eq!((both.guest_resident, both.own_private), (kib(100_000), kib(272)));
    }

    #[test]
    fn memory_of_this_process_is_read() {
        let own = std::process::id();
        assert!(resident(own).unwrap() > 0);
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let memory = parse(&smaps, 1 << 40);
        assert!(memory.own_private > 0 && memory.guest_resident == 0, "{memory:?}");
    }

    #[test]
    fn only_a_mapping_as_large_as_the_guest_is_its_memory() {
        for (line, expected) in [
            ("7f0000000000-7f0020000000 rw-s 00000000 00:01 9 /memfd:memory-backend-memfd (deleted)", Some(For::Guest)),
            ("7f0000000000-7f001ffff000 rw-p 00000000 00:00 0", Some(For::Own)),
            ("7f0000000000-7f0020000000 rw-p 00000000 fe:00 7 /var/disk.img", Some(For::Own)),
            ("7f0000000000-7f0020000000 rw-p 00000000 00:00 0 [anon:ram]", Some(For::Guest)),
            ("Rss:  4 kB", None),
            ("VmFlags: rd wr", None),
        ] {
            assert!(purpose(line, 512 << 20) == expected, "{line}");
        }
    }
}
