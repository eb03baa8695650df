use super::*;
use serde_json::{Value, json};
use std::io::Write;

/// A valid configuration with the value at `pointer` replaced.
fn changed(pointer: &str, value: Value) -> String {
    let mut config = json!({
        "vcpus": 2,
        "memory_mib": 512,
        "hotplug": {"size_mib": 1024, "requested_mib": 2},
        "kernel": {"image": "/vmlinux", "cmdline": "quiet"},
        "root": "/root.erofs",
        "disks": [{"id": "data", "path": "/data.img", "rate_limit": {"bytes": {"per_second": 1, "burst": 1}}}],
        "nets": [{"tap": "tap0", "mac": "02:00:00:00:00:01"}, {"tap": "tap1", "mac": "02:00:00:00:00:02"}],
        "shares": [{"tag": "workspaces", "path": "/workspaces"}],
        "vsock": {"cid": 3, "socket": "/run/vsock.sock"},
        "lease_s": 1,
    });
    if !pointer.is_empty() {
        *config.pointer_mut(pointer).unwrap() = value;
    }
    config.to_string()
}

fn error(text: &str) -> String {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let line = load(file.path()).unwrap_err().to_string();
    line.replace(&format!("configuration {}: ", file.path().display()), "")
}

#[test]
fn every_mistake_has_its_own_line() {
    for (pointer, value, expected) in [
        ("/vcpus", json!(0), "vcpus: 0 is not between 1 and 32"),
        ("/vcpus", json!(33), "vcpus: 33 is not between 1 and 32"),
        ("/memory_mib", json!(63), "memory_mib: 63 is not between 64 and 1048576"),
        ("/hotplug/size_mib", json!(1_048_704), "hotplug.size_mib: 1048704 is not between 128 and 1048576"),
        ("/hotplug/size_mib", json!(200), "hotplug.size_mib: 200 is not a multiple of 128"),
        ("/hotplug/requested_mib", json!(1026), "hotplug.requested_mib: 1026 is not between 0 and 1024"),
        ("/hotplug/requested_mib", json!(3), "hotplug.requested_mib: 3 is not a multiple of 2"),
        ("/hotplug", json!({"size_mib": 0}), "hotplug.size_mib: 0 is not between 128 and 1048576"),
        (
            "/kernel/cmdline",
            json!("a\nb"),
            "kernel.cmdline: byte 1 of kernel.cmdline is not a printable ASCII character",
        ),
        ("/disks/0/id", json!("Data"), "disks[0].id: \"Data\" is not 1 to 20 characters of a-z, 0-9 and -"),
        (
            "/disks/0/rate_limit/bytes/burst",
            json!(0),
            "disks[0].rate_limit.bytes.burst: 0 is not between 1 and 18446744073709551615",
        ),
        ("/nets/0/tap", json!("a/b"), "nets[0].tap: \"a/b\" is not an interface name"),
        (
            "/nets/0/mac",
            json!("02:00"),
            "nets[0].mac: \"02:00\" is not six pairs of hexadecimal digits with colons between them",
        ),
        ("/nets/0/mac", json!("01:00:00:00:00:00"), "nets[0].mac: 01:00:00:00:00:00 is a group address"),
        ("/nets/0/mac", json!("02:00:00:00:00:02"), "nets[1].mac: \"02:00:00:00:00:02\" is there already"),
        ("/shares/0/tag", json!(""), "shares[0].tag: \"\" is not 1 to 36 bytes without NUL"),
        (
            "/shares/0/tag",
            json!("x".repeat(37)),
            &format!("shares[0].tag: {:?} is not 1 to 36 bytes without NUL", "x".repeat(37)),
        ),
        ("/vsock/cid", json!(2), "vsock.cid: 2 is not between 3 and 4294967294"),
        ("/lease_s", json!(0), "lease_s: 0 is not between 1 and 86400"),
    ] {
        assert_eq!(error(&changed(pointer, value)), expected);
    }
}

#[test]
fn several_mistakes_are_reported_at_once() {
    let text = changed("/vcpus", json!(0)).replace("512", "1");
    assert_eq!(error(&text).lines().count(), 2);
}

#[test]
fn bad_fields_and_json_are_reported_with_line_and_column() {
    let text = "{\n  \"vcpus\": 1,\n  \"memory\": 5\n}";
    let line = error(text);
    assert!(
        line.starts_with("unknown field `memory`, expected one of `vcpus`") && line.ends_with("at line 3 column 10"),
        "{line}"
    );
    assert!(error("{\n  \"vcpus\": 1,,").ends_with("at line 2 column 14"));
    let missing = load(Path::new("/no/such/file")).unwrap_err().to_string();
    assert_eq!(missing, "configuration /no/such/file: No such file or directory (os error 2)");
}

#[test]
fn a_sound_configuration_is_taken() {
    let config: MachineConfig = serde_json::from_str(&changed("", Value::Null)).unwrap();
    assert_eq!(validate(&config), []);
}
