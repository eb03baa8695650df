use super::*;

#[test]
fn vmstat_sums_both_kinds() {
    let text = "nr_free_pages 4616552\nworkingset_refault_anon 3\nworkingset_refault_file 16730710\n\
                pgsteal_kswapd 9\npgsteal_anon 5\npgsteal_file 7\noom_kill 2\nodd\n";
    assert_eq!(parse_vmstat(text), Vmstat { refaults: 16_730_713, evicted: 12, oom_kills: 2 });
}

#[test]
fn all_but_idle_is_busy() {
    let text = "cpu  100 10 40 99999 30 5 15 100 7 7\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
    assert_eq!(parse_busy(text, 100), Duration::from_secs(3));
    assert_eq!(parse_busy("", 100), Duration::ZERO);
}

#[test]
fn this_kernels_files_are_read() {
    let meminfo = meminfo().unwrap();
    assert!(meminfo.total > meminfo.free && meminfo.in_use() > 0);
    assert!(counters(memory_pressure(), vmstat().unwrap()).unwrap().busy > Duration::ZERO);
}

#[test]
fn blocks_below_2_mib_are_fragmented() {
    let text = "\
Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      3 
Node 0, zone   Normal    225     19      2      1      3      1     70     87    309    754   3280 
nonsense
";
    let pages = 256 + 225 + 2 * 19 + 4 * 2 + 8 + 16 * 3 + 32 + 64 * 70 + 128 * 87 + 256 * 309;
    assert_eq!(fragmented_bytes(text), pages * PAGE);
}

const ZONEINFO: &str = "Node 0, zone    DMA32\n  per-node stats\n      nr_inactive_anon 9000\n  pages free     100\n        \
    managed  1000\n      nr_free_pages 100\n      nr_zone_inactive_anon 10\n      nr_zone_active_anon 20\n      \
    nr_zone_inactive_file 30\n      nr_zone_active_file 40\n      nr_zone_unevictable 5\nNode 0, zone   Normal\n        \
    managed  600\n      nr_free_pages 300\nNode 0, zone  Movable\n        managed  5000\n      nr_free_pages 4000\n\
    Node 0, zone   Device\n        managed  7\n      nr_free_pages 7\n";

#[test]
fn the_movable_zone_does_not_count() {
    let zones = KernelZones::parse(ZONEINFO);
    assert_eq!(zones, KernelZones { managed: 1600 * PAGE, obtainable: 500 * PAGE });
    assert_eq!(KernelZones::parse(""), KernelZones::default());
}

#[test]
fn they_are_short_when_the_kernels_own_pages_fill_them() {
    for (obtainable, short) in [(0, true), (249, true), (250, false), (1000, false)] {
        assert_eq!(KernelZones { managed: 1000, obtainable }.are_short(), short, "{obtainable}");
    }
    assert!(!KernelZones::default().are_short(), "a kernel that does not tell");
}
