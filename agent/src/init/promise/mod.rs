//! The memory that the machine was promised, and the limits that Linux computes from memory only once, at boot. A guest
//! boots with a small part of the promised memory and plugs the rest, so those limits would stay too small.

use std::fs;

use anyhow::Context;

/// The driver's folder: it has one link per device, named after the device.
const DEVICES: &str = "/sys/bus/virtio/drivers/virtio_mem";

/// The memory at boot plus all memory that can be plugged, in MiB.
pub(super) fn promised_mib() -> anyhow::Result<u64> {
    let names = fs::read_dir(DEVICES).context(DEVICES)?.flatten().map(|entry| entry.file_name());
    let devices: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
    let iomem = fs::read_to_string("/proc/iomem").context("/proc/iomem")?;
    let bytes = promised(&iomem, &devices);
    anyhow::ensure!(bytes > 0, "/proc/iomem names no memory");
    Ok(bytes.div_ceil(1 << 20))
}

/// The sum of the top-level memory ranges of `/proc/iomem`. The driver reserves a device's whole region under the
/// device's name.
fn promised(iomem: &str, devices: &[String]) -> u64 {
    let ranges = iomem.lines().filter(|line| !line.starts_with(' ')).filter_map(|line| {
        let (range, name) = line.split_once(" : ")?;
        let (first, last) = range.split_once('-')?;
        let address = |text| u64::from_str_radix(text, 16).ok();
        let len = address(last)?.checked_sub(address(first)?)?.checked_add(1)?;
        (name == "System RAM" || devices.iter().any(|device| device == name)).then_some(len)
    });
    ranges.fold(0, u64::saturating_add)
}

/// Limits by sysctl name for a machine of `mib` MiB. The rates are those of Linux unless a comment says otherwise.
pub(super) fn sysctls_for(mib: u64) -> Vec<(&'static str, String)> {
    let one = |name, rate: u64, least: u64, most: u64| (name, mib.saturating_mul(rate).clamp(least, most).to_string());
    // Numbers of pages (256 per MiB): no limit below the first, pressure from the second, never above the third.
    let pages = |name, rates: [u64; 3]| (name, rates.map(|rate| mib.saturating_mul(rate).to_string()).join(" "));
    vec![
        // Kernel stacks may use an eighth of memory.
        one("kernel/threads-max", 8, 4096, 4_194_304),
        // Files may use a tenth of memory, at 1 KiB per file.
        one("fs/file-max", 102, 65_536, u64::MAX >> 1),
        // Watches may use a twenty-fifth of memory, at 200 bytes per watch.
        one("fs/epoll/max_user_watches", 209, 65_536, u64::MAX >> 1),
        // Linux uses steps: 65,536 from 1 GiB, 262,144 from 4 GiB. An entry has 320 bytes.
        one("net/netfilter/nf_conntrack_max", 24, 16_384, 1 << 20),
        // A quarter of the number of entries; Linux uses the same number. This table is allocated at once, also in idle
        // machines.
        one("net/netfilter/nf_conntrack_buckets", 6, 4096, 65_536),
        // Databases map many files; a map has some 200 bytes.
        one("vm/max_map_count", 128, 262_144, 1 << 24),
        // File watchers of editors and bundlers; they ask for this least number. A watch holds an inode of about 1 KiB, so
        // beyond it all watches of one uid may use an eighth of memory.
        one("fs/inotify/max_user_watches", 128, 524_288, 1 << 24),
        pages("net/ipv4/tcp_mem", [12, 16, 24]),
        pages("net/ipv4/udp_mem", [24, 32, 48]),
    ]
}

#[cfg(test)]
mod tests;
