//! Figures of a process from `/proc`. They are `None` after the process has ended.

use std::fs;

pub(super) fn threads(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

pub(crate) fn open_descriptors(pid: u32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.count() as u64)
}

/// Bytes that it has read and written by system calls, with or without disk access.
pub(crate) fn io_bytes(pid: u32) -> u64 {
    read_and_written(&fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default())
}

/// CPU time in milliseconds: of its guest, of threads that have ended, and in the kernel too.
pub(super) fn cpu_ms(pid: u32) -> u64 {
    worked(&fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default()).unwrap_or(0)
}

/// proc_pid_stat(5): the name in parentheses may contain any character. utime and stime are the 12th and 13th field
/// after it.
fn worked(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap_or(0)).sum();
    Some(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

fn read_and_written(io: &str) -> u64 {
    let fields = io.lines().filter_map(|line| line.split_once(": "));
    fields
        .filter(|(name, _)| ["rchar", "wchar"].contains(name))
        .filter_map(|(_, value)| value.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_this_process_are_read() {
        let own = std::process::id();
        assert!(threads(own).contains(&own));
        assert!(open_descriptors(own) >= 3);
        assert_eq!((threads(u32::MAX), open_descriptors(u32::MAX), io_bytes(u32::MAX)), (Vec::new(), 0, 0));
        assert_eq!(worked("7 (a) b) S 1 7 7 0 -1 0 0 0 0 0 150 50 9 9 20 0 4 0 1"), Some(2000));
        assert_eq!((worked(""), cpu_ms(u32::MAX)), (None, 0));
        assert_eq!(read_and_written("rchar: 100\nwchar: 20\nsyscr: 7\nread_bytes: 4096\n"), 120);
    }
}
