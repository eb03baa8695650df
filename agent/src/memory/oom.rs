//! Counts the kills for lack of memory.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::tuning::LOG_RECORDS_MAX;

/// The beginning of the kernel's log line about a kill for a control group's own limit (mm/oom_kill.c).
const OWN_LIMIT: &[u8] = b"Memory cgroup out of memory: Killed process";
/// The longest log record (`PRINTK_MESSAGE_MAX` and its prefix).
const RECORD_MAX: usize = 8192;

/// Counts kills for lack of memory, except those for a container's own limit. The kernel counts both together, and a
/// removed container's own count is lost with it. Only the kernel's log distinguishes them. It is read when the count
/// changes.
pub(super) struct OomKills {
    log: Option<File>,
    counted: u64,
    own_limit: u64,
}

impl OomKills {
    /// If the log cannot be read, all kills count.
    pub(super) fn new() -> Self {
        let mut options = OpenOptions::new();
        let log = options.read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open("/dev/kmsg").ok();
        Self { log, counted: 0, own_limit: 0 }
    }

    /// The number of kills to report, from the kernel's counter `oom_kill`.
    pub(super) fn of(&mut self, count: u64) -> u64 {
        if count != self.counted {
            self.counted = count;
            let new = self.log.as_mut().map_or(0, own_limit_kills);
            self.own_limit = self.own_limit.saturating_add(new);
        }
        count.saturating_sub(self.own_limit)
    }
}

/// Each read returns one record, until there are no more. Records that were overwritten in the meantime are lost
/// (`EPIPE`).
fn own_limit_kills(log: &mut impl Read) -> u64 {
    let mut record = [0; RECORD_MAX];
    let mut kills = 0;
    for _ in 0..LOG_RECORDS_MAX {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(length) => kills += u64::from(is_own_limit(&record[..length])),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::PIPE) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    kills
}

/// `priority,sequence,time,flags;text`. Priorities of 8 and above are other facilities: those records come from
/// programs, not from the kernel.
fn is_own_limit(record: &[u8]) -> bool {
    let Some(end) = record.iter().position(|byte| *byte == b';') else { return false };
    let kernels = record.get(1) == Some(&b',');
    kernels && record[end + 1..].starts_with(OWN_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str =
        "3,812,5140900,-;Memory cgroup out of memory: Killed process 123 (cc1) total-vm:1kB, anon-rss:2kB\n";
    const GUEST: &str = "3,813,5140901,-;Out of memory: Killed process 124 (node) total-vm:1kB\n";
    const FORGED: &str = "12,814,5140902,-;Memory cgroup out of memory: Killed process 1 (x)\n";

    #[test]
    fn kill_records_are_parsed() {
        let cases = [(OWN, true), (GUEST, false), (FORGED, false), ("", false), ("3", false), ("3,1;", false)];
        for (record, own) in cases {
            assert_eq!(is_own_limit(record.as_bytes()), own, "{record}");
        }
    }

    /// Each read returns one record, like the kernel's log.
    struct Log(Vec<Result<&'static str, Errno>>);

    impl Read for Log {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            let Some(record) = self.0.pop() else { return Err(ErrorKind::WouldBlock.into()) };
            let record = record?;
            into[..record.len()].copy_from_slice(record.as_bytes());
            Ok(record.len())
        }
    }

    #[test]
    fn only_own_limits_are_counted_also_after_a_loss() {
        let mut log = Log(vec![Ok(OWN), Ok(GUEST), Err(Errno::PIPE), Ok(FORGED), Ok(OWN)]);
        assert_eq!((own_limit_kills(&mut log), own_limit_kills(&mut log)), (2, 0));
    }

    #[test]
    fn a_count_is_never_below_zero() {
        let mut kills = OomKills { log: None, counted: 0, own_limit: 2 };
        assert_eq!((kills.of(1), kills.of(5)), (0, 3));
    }
}
