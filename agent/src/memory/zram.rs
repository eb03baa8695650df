//! Swap in compressed memory.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use super::tuning::{PAGE, SWAP_DEVICES_MAX, SWAP_SLACK_PART};

const CONTROL: &str = "/sys/class/zram-control/hot_add";
const BLOCK: &str = "/sys/block";
/// The kernel sets no `PATH` for init, and init may start the loop.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Keeps swap as large as memory.
#[derive(Debug, Default)]
pub(super) struct Zram {
    /// Memory at the last check, in bytes: a failed attempt is not repeated for the same size.
    total: u64,
}

impl Zram {
    /// Adds a device if memory has grown. Existing devices are found again after a restart.
    ///
    /// # Errors
    /// There is not enough memory for the device, or the kernel has no zram.
    pub(super) fn follow(&mut self, total: u64) -> io::Result<()> {
        if total <= self.total {
            return Ok(());
        }
        self.total = total;
        let swap = swaps(&fs::read_to_string("/proc/swaps")?);
        let devices = devices()?;
        match missing(total, swap, devices.len() - unused(&devices).map_or(0, |_| 1)) {
            Some(size) => add(&devices, size),
            None => Ok(()),
        }
    }
}

/// Uses the device that exists from the start, or creates a new one.
fn add(devices: &[String], size: u64) -> io::Result<()> {
    let name = match unused(devices) {
        Some(name) => name.clone(),
        None => format!("zram{}", fs::read_to_string(CONTROL)?.trim()),
    };
    fs::write(Path::new(BLOCK).join(&name).join("disksize"), size.to_string())?;
    let device = format!("/dev/{name}");
    run("mkswap", &["--quiet", &device])?;
    // Devices of equal priority are used in turns.
    run("swapon", &["--priority", "100", "--discard", &device])
}

fn run(program: &str, args: &[&str]) -> io::Result<()> {
    let status =
        Command::new(program).args(args).env("PATH", PATH).stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{program}: {status}"))) }
}

/// All zram devices, by name.
fn devices() -> io::Result<Vec<String>> {
    let names = fs::read_dir(BLOCK)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| name.starts_with("zram")).collect())
}

/// A device that was never given a size.
fn unused(devices: &[String]) -> Option<&String> {
    let has_no_size = |name: &&String| {
        fs::read_to_string(Path::new(BLOCK).join(name).join("disksize")).is_ok_and(|size| size.trim() == "0")
    };
    devices.iter().find(has_no_size)
}

/// The size of all zram devices in `/proc/swaps`, in bytes. The fields are name, kind, size in KiB.
fn swaps(text: &str) -> u64 {
    let size = |line: &str| -> Option<u64> {
        let mut words = line.split_whitespace();
        words.next()?.strip_prefix("/dev/zram")?;
        Some(words.nth(1)?.parse::<u64>().ok()?.saturating_mul(1024))
    };
    text.lines().filter_map(size).sum()
}

/// The size in bytes of the swap device to add for `total` bytes of memory, when there are `devices` of `swap` bytes in
/// total.
///
/// Swap in compressed memory should be about as large as memory. A device cannot grow, so there are several, each at
/// least as large as all earlier ones together: an empty device costs 16 bytes per page.
fn missing(total: u64, swap: u64, devices: usize) -> Option<u64> {
    let enough = swap.saturating_add(swap / SWAP_SLACK_PART) >= total;
    let size = total.saturating_sub(swap).max(swap) / PAGE * PAGE;
    (!enough && devices < SWAP_DEVICES_MAX && size > 0).then_some(size)
}

#[cfg(test)]
mod tests {
    use super::super::tuning::MIB;
    use super::*;

    #[test]
    fn only_zram_counts() {
        let text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                    /dev/zram0                              partition\t524284\t\t0\t\t100\n\
                    /swapfile                               file\t\t1048572\t\t0\t\t-2\n\
                    /dev/zram1                              partition\t1024\t\t0\t\t100\n";
        assert_eq!(swaps(text), (524_284 + 1024) * 1024);
    }

    #[test]
    fn a_failed_program_is_named() {
        assert!(run("false", &[]).unwrap_err().to_string().starts_with("false: exit status: 1"));
    }

    #[test]
    fn swap_follows_memory() {
        let cases = [
            // total, swap, devices, missing; in MiB
            (0, 0, 0, None),
            (512, 0, 0, Some(512)),
            (512, 512, 1, None),
            (640, 512, 1, None),
            (641, 512, 1, Some(512)),
            (4096, 512, 1, Some(3584)),
            (256, 512, 1, None),
            (4096, 512, 12, None),
        ];
        for (total, swap, devices, expected) in cases {
            let missing = missing(total * MIB, swap * MIB, devices);
            assert_eq!(missing, expected.map(|size: u64| size * MIB), "{total} {swap} {devices}");
        }
    }

    #[test]
    fn swap_covers_growing_memory_and_not_much_more() {
        let (mut total, mut swap, mut devices) = (512 * MIB, 0, 0);
        while total < 1 << 40 {
            while let Some(size) = missing(total, swap, devices) {
                swap += size;
                devices += 1;
            }
            assert!(swap * 5 / 4 >= total && swap <= 2 * total, "{total}: {swap}");
            total += 128 * MIB;
        }
        assert!(devices <= SWAP_DEVICES_MAX);
    }
}
