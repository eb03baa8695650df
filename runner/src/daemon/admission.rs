//! How much memory may be promised and guaranteed: pure functions of the host's figures and the existing promises.

use std::fs;

use crate::config::MEMORY_MIN_MIB;

/// The host memory that an idle machine needs in addition to its own, in MiB: for the VMM, page tables and kernel
/// objects.
pub(super) const MACHINE_OVERHEAD_MIB: u64 = 24;

/// The host's figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Host {
    pub cpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Swap, in MiB.
    pub swap_mib: u64,
    /// Memory kept for the host itself, in MiB; the rest is the machines' capacity.
    pub reserve_mib: u64,
}

/// The sum of what is promised to all machines that should run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Promises {
    /// The most memory that they can have, in MiB, including what their VMMs need.
    pub promised_mib: u64,
    /// The memory that they can always have, whatever other machines do, in MiB.
    pub guaranteed_mib: u64,
    pub machines: u64,
}

/// The memory that one machine asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Demand {
    /// The most memory that it can have, in MiB.
    pub promised_mib: u64,
    /// The memory that its VMM may need in addition, in MiB.
    pub vmm_mib: u64,
    /// The memory that it can always have, whatever other machines do, in MiB.
    pub guaranteed_mib: u64,
}

impl Host {
    /// Reads the host's own figures.
    pub(super) fn measure() -> Self {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32);
        let memory_mib = meminfo_mib(&meminfo, "MemTotal");
        let reserve_mib = default_reserve_mib(memory_mib);
        Self { cpus, memory_mib, swap_mib: meminfo_mib(&meminfo, "SwapTotal"), reserve_mib }
    }

    /// The memory that all machines may hold together, in MiB.
    pub(super) fn capacity_mib(&self) -> u64 {
        self.memory_mib.saturating_sub(self.reserve_mib)
    }

    /// The default number of a machine's virtual CPUs.
    pub(super) fn default_vcpus(&self) -> u8 {
        self.cpus.clamp(1, 4) as u8
    }

    /// The default memory of a machine, in MiB.
    pub(super) fn default_memory_mib(&self) -> u32 {
        ((self.memory_mib / 2).min(8192) as u32).max(MEMORY_MIN_MIB)
    }

    /// The default guarantee of a machine of `memory_mib` MiB, in MiB.
    pub(super) fn default_guaranteed_mib(memory_mib: u32) -> u32 {
        (memory_mib / 4).max(MEMORY_MIN_MIB).min(memory_mib)
    }
}

/// The default reserve of a host of `memory_mib` MiB, in MiB.
fn default_reserve_mib(memory_mib: u64) -> u64 {
    (memory_mib / 20).max(256)
}

fn meminfo_mib(meminfo: &str, name: &str) -> u64 {
    crate::host::meminfo(meminfo, name) >> 20
}

/// Checks whether a machine may run beside those that should run. The error is the reason, with figures. The host's
/// memory plus swap may be promised. Guarantees, plus each machine's overhead, may use the memory without the host's
/// reserve.
pub(super) fn admit(host: &Host, already: Promises, asked: Demand) -> Result<(), String> {
    admit_promise(host, already.promised_mib, asked)?;
    admit_guarantee(host, already, asked.guaranteed_mib)
}

fn admit_promise(host: &Host, promised_mib: u64, asked: Demand) -> Result<(), String> {
    let there = host.memory_mib + host.swap_mib;
    let Demand { promised_mib: asked_mib, vmm_mib, .. } = asked;
    if promised_mib + asked_mib + vmm_mib <= there {
        return Ok(());
    }
    Err(format!(
        "the machine asks for {asked_mib} MiB and its VMM needs {vmm_mib} MiB, but {promised_mib} of the host's {there} MiB \
         (memory {}, swap {}) are already promised: ask for less with memory_mib, stop another machine, or add swap",
        host.memory_mib, host.swap_mib
    ))
}

fn admit_guarantee(host: &Host, already: Promises, asked_mib: u64) -> Result<(), String> {
    let capacity = host.capacity_mib();
    let guaranteed = already.guaranteed_mib + already.machines * MACHINE_OVERHEAD_MIB;
    if guaranteed + asked_mib + MACHINE_OVERHEAD_MIB <= capacity {
        return Ok(());
    }
    Err(format!(
        "the machine asks for a guarantee of {asked_mib} MiB and its VMM needs {MACHINE_OVERHEAD_MIB} MiB, but \
         {guaranteed} of the {capacity} MiB for machines (memory {}, reserve {}) are already guaranteed to {} others: \
         ask for less with guaranteed_mib, or stop another machine",
        host.memory_mib, host.reserve_mib, already.machines
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Host = Host { cpus: 2, memory_mib: 4000, swap_mib: 1000, reserve_mib: 256 };

    fn promised(promised_mib: u64) -> Promises {
        Promises { promised_mib, ..Promises::default() }
    }

    #[test]
    fn memory_and_swap_may_be_promised_and_no_more() {
        for (already, asked, fits) in [(0, 5000, true), (0, 5001, false), (3000, 2000, true), (3000, 2001, false)] {
            let demand = Demand { promised_mib: asked, ..Demand::default() };
            assert_eq!(admit(&HOST, promised(already), demand).is_ok(), fits, "{already} + {asked}");
        }
    }

    #[test]
    fn guarantees_and_overheads_fit_beside_the_reserve() {
        for (guaranteed_mib, machines, asked, fits) in
            [(0, 0, 3720, true), (0, 0, 3721, false), (1000, 4, 2624, true), (1000, 4, 2625, false)]
        {
            let already = Promises { promised_mib: 0, guaranteed_mib, machines };
            let demand = Demand { promised_mib: asked, vmm_mib: 0, guaranteed_mib: asked };
            assert_eq!(admit(&HOST, already, demand).is_ok(), fits, "{already:?} + {asked}");
        }
        let all_reserved = Host { reserve_mib: 9000, ..HOST };
        let least = Demand { promised_mib: 256, vmm_mib: 0, guaranteed_mib: 256 };
        assert!(admit(&all_reserved, Promises::default(), least).is_err());
    }

    #[test]
    fn a_refusal_has_the_numbers() {
        let demand = Demand { promised_mib: 2500, vmm_mib: 100, guaranteed_mib: 256 };
        let already = Promises { promised_mib: 3000, guaranteed_mib: 3400, machines: 4 };
        let refusal = admit(&HOST, already, demand).unwrap_err();
        for number in ["2500 MiB", "3000 of", "5000 MiB", "memory 4000", "swap 1000", "memory_mib"] {
            assert!(refusal.contains(number), "{refusal}");
        }
        let refusal = admit(&HOST, already, Demand { promised_mib: 512, ..demand }).unwrap_err();
        for number in ["256 MiB", "needs 24 MiB", "3496 of", "3744 MiB", "reserve 256", "4 others", "guaranteed_mib"] {
            assert!(refusal.contains(number), "{refusal}");
        }
    }

    #[test]
    fn defaults_follow_the_host() {
        assert_eq!((HOST.default_vcpus(), HOST.default_memory_mib()), (2, 2000));
        let big = Host { cpus: 96, memory_mib: 400_000, swap_mib: 0, reserve_mib: 256 };
        assert_eq!((big.default_vcpus(), big.default_memory_mib()), (4, 8192));
        let tiny = Host { cpus: 1, memory_mib: 300, swap_mib: 0, reserve_mib: 256 };
        assert_eq!((tiny.default_vcpus(), tiny.default_memory_mib()), (1, 256));
        for (memory, guaranteed) in [(256, 256), (1000, 256), (8192, 2048)] {
            assert_eq!(Host::default_guaranteed_mib(memory), guaranteed);
        }
        for (memory, reserve) in [(2000, 256), (400_000, 20_000)] {
            assert_eq!(default_reserve_mib(memory), reserve);
        }
    }

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:        8039208 kB\nMemFree: 1 kB\nSwapTotal:       2048000 kB\n";
        assert_eq!(meminfo_mib(text, "MemTotal"), 7850);
        assert_eq!(meminfo_mib(text, "SwapTotal"), 2000);
        assert_eq!(meminfo_mib("", "SwapTotal"), 0);
    }
}
