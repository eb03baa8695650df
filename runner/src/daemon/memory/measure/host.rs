//! The host's memory, as its kernel reports it.

use crate::host::meminfo;
use std::fs;

use crate::daemon::memory::policy::HostView;

/// Reads the host's figures; `reserve` is the memory reserved for the host itself, in bytes.
///
/// # Errors
/// `/proc/meminfo` cannot be read.
pub fn measure(reserve: u64) -> std::io::Result<HostView> {
    let text = fs::read_to_string("/proc/meminfo")?;
    // Absent where the kernel has no PSI or was booted with psi=0.
    let pressure = fs::read_to_string("/proc/pressure/memory").unwrap_or_default();
    Ok(view(&text, &pressure, reserve))
}

fn view(text: &str, pressure: &str, reserve: u64) -> HostView {
    HostView {
        total: meminfo(text, "MemTotal"),
        available: meminfo(text, "MemAvailable"),
        swap_total: meminfo(text, "SwapTotal"),
        swap_free: meminfo(text, "SwapFree"),
        reserve,
        pressure_some: avg10(pressure, "some"),
        pressure_full: avg10(pressure, "full"),
    }
}

/// Parses `some avg10=0.22 avg60=…`, in per cent.
fn avg10(pressure: &str, which: &str) -> Option<f64> {
    let line = pressure.lines().find_map(|line| line.strip_prefix(which))?;
    line.split_whitespace().find_map(|word| word.strip_prefix("avg10=")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_figures_become_a_view() {
        let meminfo =
            "MemTotal:  8000 kB\nMemFree:  1 kB\nMemAvailable:   5000 kB\nSwapTotal: 2000 kB\nSwapFree: 1500 kB\n";
        let pressure =
            "some avg10=1.25 avg60=0.10 avg300=0.00 total=77\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=7\n";
        let expected = HostView {
            total: 8000 << 10,
            available: 5000 << 10,
            swap_total: 2000 << 10,
            swap_free: 1500 << 10,
            reserve: 9,
            pressure_some: Some(1.25),
            pressure_full: Some(0.5),
        };
        assert_eq!(view(meminfo, pressure, 9), expected);
    }

    #[test]
    fn a_host_without_psi_or_swap_is_measured() {
        let view = view("MemTotal: 8 kB\n", "", 0);
        assert_eq!((view.pressure_some, view.pressure_full, view.swap_total), (None, None, 0));
    }
}
