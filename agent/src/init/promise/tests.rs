use super::*;

const IOMEM: &str = "\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
00100000-1fffffff : System RAM
  01000000-020a7fff : Kernel code
c0000000-dfffffff : PCI Bus 0000:00
  c0000000-c007ffff : 0000:00:01.0
c0000000-c007ffff : virtio-pci-modern
140000000-21fffffff : virtio7
  140000000-147ffffff : System RAM (virtio_mem)
240000000-24fffffff : Persistent Memory
  240000000-24fffffff : namespace0.0
";

#[test]
fn promise_is_boot_memory_and_the_whole_region() {
    let devices = ["bind".to_owned(), "virtio7".to_owned()];
    assert_eq!(promised(IOMEM, &devices).div_ceil(1 << 20), 512 + 3584);
    assert_eq!(promised(IOMEM, &[]).div_ceil(1 << 20), 512);
    assert_eq!(promised("", &devices), 0);
    assert_eq!(promised("zz-1 : System RAM\n9-1 : System RAM\n-\n1-2\n", &devices), 0);
}

#[test]
fn limits_follow_the_promise() {
    let names = [
        "kernel/threads-max",
        "fs/file-max",
        "fs/epoll/max_user_watches",
        "net/netfilter/nf_conntrack_max",
        "net/netfilter/nf_conntrack_buckets",
        "vm/max_map_count",
        "fs/inotify/max_user_watches",
        "net/ipv4/tcp_mem",
        "net/ipv4/udp_mem",
    ];
    for (mib, expected) in [
        (64, ["4096", "65536", "65536", "16384", "4096", "262144", "524288", "768 1024 1536", "1536 2048 3072"]),
        (512, ["4096", "65536", "107008", "16384", "4096", "262144", "524288", "6144 8192 12288", "12288 16384 24576"]),
        (
            3973,
            [
                "31784",
                "405246",
                "830357",
                "95352",
                "23838",
                "508544",
                "524288",
                "47676 63568 95352",
                "95352 127136 190704",
            ],
        ),
        (
            4096,
            [
                "32768",
                "417792",
                "856064",
                "98304",
                "24576",
                "524288",
                "524288",
                "49152 65536 98304",
                "98304 131072 196608",
            ],
        ),
        (
            1 << 20,
            [
                "4194304",
                "106954752",
                "219152384",
                "1048576",
                "65536",
                "16777216",
                "16777216",
                "12582912 16777216 25165824",
                "25165824 33554432 50331648",
            ],
        ),
    ] {
        let expected: Vec<_> = names.into_iter().zip(expected.map(str::to_owned)).collect();
        assert_eq!(sysctls_for(mib), expected, "{mib} MiB");
    }
}

proptest::proptest! {
    /// PID 1 does not panic, for any text from the kernel.
    #[test]
    fn any_iomem_is_survived(
        text in "([0-9a-f -]{0,40}( : (System RAM|virtio1))?\n?){0,8}",
        mib in proptest::prelude::any::<u64>(),
    ) {
        promised(&text, &["virtio1".to_owned()]);
        proptest::prop_assert_eq!(sysctls_for(mib).len(), 9);
    }
}
