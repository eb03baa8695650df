//! The VMM reports invalid input in one line, which says what is wrong and where.

use std::fs;
use std::process::Command;

use garret_api::vmm::ExitReason;
use serde_json::{Value, json};

use crate::stage::{Machine, config, installed};

fn fails(config: Value, words: &[&str]) {
    fails_by(config, Command::new(installed("garret-vmm")), words);
}

fn fails_by(config: Value, command: Command, words: &[&str]) {
    let end = Machine::start_by(config, command).end();
    assert_eq!((end.words.reason, end.status), (ExitReason::Failed, 1), "{}", end.stderr);
    assert_eq!(end.stderr, format!("garret-vmm: {}\n", end.words.message), "more than one clear line");
    for word in words {
        assert!(end.words.message.contains(word), "`{word}` is not in `{}`", end.words.message);
    }
}

/// The first half of an installed file, as an interrupted copy leaves it.
fn half(name: &str) -> tempfile::NamedTempFile {
    let whole = fs::File::open(installed(name)).expect("it is installed");
    let half = tempfile::NamedTempFile::new().expect("a file");
    let len = whole.metadata().expect("it is there").len() / 2 + 1;
    std::io::copy(&mut std::io::Read::take(whole, len), &mut half.as_file()).expect("room for it");
    half
}

#[test]
fn a_missing_kernel_is_one_clear_line() {
    let mut config = config("");
    config["kernel"]["image"] = "/no/such/vmlinux".into();
    fails(config, &["kernel /no/such/vmlinux: No such file or directory"]);
}

#[test]
fn a_truncated_kernel_is_one_clear_line() {
    let (mut config, kernel) = (config(""), half("vmlinux"));
    config["kernel"]["image"] = json!(kernel.path());
    fails(config, &["truncated or damaged", kernel.path().to_str().expect("UTF-8")]);
}

#[test]
fn a_kernel_of_another_format_is_one_clear_line() {
    let mut config = config("");
    config["kernel"]["image"] = "/etc/passwd".into();
    fails(config, &["kernel /etc/passwd: not an ELF file"]);
}

#[test]
fn a_missing_root_image_is_one_clear_line() {
    let mut config = config("");
    config["root"] = "/no/such/root.erofs".into();
    fails(config, &["/no/such/root.erofs", "No such file or directory"]);
}

#[test]
fn a_truncated_root_image_is_one_clear_line() {
    let (mut config, root) = (config(""), half("root.erofs"));
    config["root"] = json!(root.path());
    fails(config, &[root.path().to_str().expect("UTF-8"), "2 MiB"]);
}

#[test]
fn disk_share_and_tap_missing() {
    let with = |field: &str, value: Value| {
        let mut config = config("");
        config[field] = json!([value]);
        config
    };
    fails(with("disks", json!({ "id": "data", "path": "/no/such/disk" })), &["/no/such/disk"]);
    fails(with("shares", json!({ "tag": "w", "path": "/no/such/folder", "fd_limit": 64 })), &["/no/such/folder"]);
    fails(with("nets", json!({ "tap": "garret-none", "mac": "02:00:00:00:00:01" })), &["garret-none"]);
}

#[test]
fn a_host_without_kvm_is_one_clear_line() {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount -t tmpfs none /dev && exec \"$@\"", "sh"]).arg(installed("garret-vmm"));
    fails_by(config(""), command, &["/dev/kvm: No such file or directory", "; "]);
}
