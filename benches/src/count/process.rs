//! What `/proc` tells of a process. One that has ended has nothing.

use std::fs;

/// Its threads.
pub fn threads(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// How many descriptors it has open.
pub fn open_descriptors(pid: u32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.count() as u64)
}

/// Bytes it has read and written by system calls, whether a disk was touched or not.
pub fn io_bytes(pid: u32) -> u64 {
    read_and_written(&fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default())
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
    fn this_process() {
        let own = std::process::id();
        assert!(threads(own).contains(&own));
        assert!(open_descriptors(own) >= 3);
        assert_eq!((threads(u32::MAX), open_descriptors(u32::MAX), io_bytes(u32::MAX)), (Vec::new(), 0, 0));
        assert_eq!(read_and_written("rchar: 100\nwchar: 20\nsyscr: 7\nread_bytes: 4096\n"), 120);
    }
}
