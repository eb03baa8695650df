/// The most swap devices. Each is at least as large as all earlier ones together, so this allows growth by a factor of
/// 2,048.
const DEVICES_MAX: usize = 12;
const PAGE: u64 = 4096;

/// The size in bytes of the swap device to add for `total` bytes of memory, when there are `devices` of `swap` bytes in
/// total.
///
/// Swap in compressed memory should be about as large as memory. A device cannot grow, so there are several, each at
/// least as large as all earlier ones together: an empty device costs 16 bytes per page.
pub(super) fn missing(total: u64, swap: u64, devices: usize) -> Option<u64> {
    let enough = swap.saturating_add(swap / 4) >= total;
    let size = total.saturating_sub(swap).max(swap) / PAGE * PAGE;
    (!enough && devices < DEVICES_MAX && size > 0).then_some(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

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
    fn a_memory_that_grows_in_small_steps_stays_covered_and_not_by_too_much() {
        let (mut total, mut swap, mut devices) = (512 * MIB, 0, 0);
        while total < 1 << 40 {
            while let Some(size) = missing(total, swap, devices) {
                swap += size;
                devices += 1;
            }
            assert!(swap * 5 / 4 >= total && swap <= 2 * total, "{total}: {swap}");
            total += 128 * MIB;
        }
        assert!(devices <= DEVICES_MAX);
    }
}
