//! How much memory may be promised: a pure function of the host's figures and what is promised already.

use std::fs;

/// The least memory a machine may have, in MiB.
pub const MEMORY_MIN_MIB: u32 = 256;

/// The host's figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// CPUs.
    pub cpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Swap, in MiB.
    pub swap_mib: u64,
}

impl Host {
    /// Reads the host's own figures.
    pub fn measure() -> Self {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32);
        Self { cpus, memory_mib: meminfo_mib(&meminfo, "MemTotal"), swap_mib: meminfo_mib(&meminfo, "SwapTotal") }
    }

    /// A machine's virtual CPUs where nobody says otherwise.
    pub fn default_vcpus(&self) -> u8 {
        self.cpus.clamp(1, 4) as u8
    }

    /// A machine's memory in MiB where nobody says otherwise.
    pub fn default_memory_mib(&self) -> u32 {
        ((self.memory_mib / 2).min(8192) as u32).max(MEMORY_MIN_MIB)
    }
}

fn meminfo_mib(meminfo: &str, name: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Whether a machine of `asked_mib` may run beside those that are promised `promised_mib` in all; if not, why, with
/// numbers. Memory may be promised up to the host's memory and swap together.
pub fn admit(host: &Host, promised_mib: u64, asked_mib: u64) -> Result<(), String> {
    let there = host.memory_mib + host.swap_mib;
    if promised_mib + asked_mib <= there {
        return Ok(());
    }
    Err(format!(
        "the machine asks for {asked_mib} MiB, but {promised_mib} of the host's {there} MiB (memory {}, swap {}) are \
         promised already: ask for less with memory_mib, stop another machine, or add swap",
        host.memory_mib, host.swap_mib
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Host = Host { cpus: 2, memory_mib: 4000, swap_mib: 1000 };

    #[test]
    fn memory_and_swap_may_be_promised_and_no_more() {
        for (promised, asked, fits) in [(0, 5000, true), (0, 5001, false), (3000, 2000, true), (3000, 2001, false)] {
            assert_eq!(admit(&HOST, promised, asked).is_ok(), fits, "{promised} + {asked}");
        }
    }

    #[test]
    fn a_refusal_has_the_numbers() {
        let refusal = admit(&HOST, 3000, 2500).unwrap_err();
        for number in ["2500 MiB", "3000 of", "5000 MiB", "memory 4000", "swap 1000"] {
            assert!(refusal.contains(number), "{refusal}");
        }
    }

    #[test]
    fn defaults_follow_the_host() {
        assert_eq!((HOST.default_vcpus(), HOST.default_memory_mib()), (2, 2000));
        let big = Host { cpus: 96, memory_mib: 400_000, swap_mib: 0 };
        assert_eq!((big.default_vcpus(), big.default_memory_mib()), (4, 8192));
        let tiny = Host { cpus: 1, memory_mib: 300, swap_mib: 0 };
        assert_eq!((tiny.default_vcpus(), tiny.default_memory_mib()), (1, 256));
    }

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:        8039208 kB\nMemFree: 1 kB\nSwapTotal:       2048000 kB\n";
        assert_eq!(meminfo_mib(text, "MemTotal"), 7850);
        assert_eq!(meminfo_mib(text, "SwapTotal"), 2000);
        assert_eq!(meminfo_mib("", "SwapTotal"), 0);
    }
}
