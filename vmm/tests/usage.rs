//! Wrong usage: the program prints one clear line, and writes the same to the last words. No test here needs KVM.

use std::path::Path;
use std::process::{Command, Output};

use garret_api::vmm::{ExitReason, LastWords};

fn run(folder: &Path, config: &str) -> (Output, String) {
    let file = folder.join("machine.json");
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_garret-vmm"));
    command.args(["--config", file.to_str().unwrap(), "--api"]).arg(folder.join("api.sock"));
    let output = command.arg("--last-words").arg(folder.join("last-words")).output().unwrap();
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    let words: LastWords = serde_json::from_slice(&std::fs::read(folder.join("last-words")).unwrap()).unwrap();
    assert_eq!(words.reason, ExitReason::Failed);
    assert_eq!(error, format!("garret-vmm: {}\n", words.message));
    (output, words.message)
}

#[test]
fn an_unknown_field_is_reported_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let (output, message) = run(folder.path(), "{\"vcpus\": 1,\n \"memory\": 5}");
    assert_eq!(output.status.code(), Some(1));
    assert!(message.contains("machine.json: unknown field `memory`"), "{message}");
    assert!(message.ends_with("at line 2 column 9"), "{message}");
}

#[test]
fn a_wrong_value_is_reported_with_its_range() {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"vcpus": 99, "memory_mib": 64, "kernel": {"image": "/vmlinux"}}"#;
    let (_, message) = run(folder.path(), config);
    assert!(message.ends_with("machine.json: vcpus: 99 is not between 1 and 32"), "{message}");
}

#[test]
fn no_arguments_show_the_usage() {
    let output = Command::new(env!("CARGO_BIN_EXE_garret-vmm")).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--config <FILE>"));
}
