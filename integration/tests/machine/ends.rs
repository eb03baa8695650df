//! Each way in which a machine ends by itself has its own reason and status.

use garret_api::vmm::ExitReason;

use crate::stage::{Machine, config};

fn ends_with(command: &str, reason: ExitReason, console: &str) {
    let end = Machine::start(config(command)).end();
    assert_eq!(end.words.reason, reason, "{}\n{}", end.stderr, end.console);
    assert_eq!(end.status, i32::from(reason.status()));
    assert_eq!(end.stderr, format!("garret-vmm: {}\n", end.words.message));
    assert!(end.console.contains(console), "{}", end.console);
}

#[test]
fn a_guest_that_powers_off_ends_with_that_reason() {
    ends_with(
        "echo hello from the guest; echo o > /proc/sysrq-trigger; sleep 100",
        ExitReason::PowerOff,
        "hello from the guest",
    );
}

#[test]
fn a_guest_that_reboots_ends_with_that_reason() {
    ends_with("echo b > /proc/sysrq-trigger; sleep 100", ExitReason::Reboot, "");
}

#[test]
fn a_kernel_panic_ends_with_that_reason() {
    ends_with(
        "echo c > /proc/sysrq-trigger; sleep 100",
        ExitReason::Panic,
        "Kernel panic - not syncing: sysrq triggered crash",
    );
}

#[test]
fn a_dead_init_ends_with_a_panic() {
    ends_with("exit 3", ExitReason::Panic, "Kernel panic - not syncing: Attempted to kill init!");
}

#[test]
fn a_missing_root_device_ends_with_a_panic() {
    let mut config = config("");
    config["root"].take();
    config["kernel"]["cmdline"] = "quiet root=/dev/nope".into();
    let end = Machine::start(config).end();
    assert_eq!(end.words.reason, ExitReason::Panic, "{}\n{}", end.stderr, end.console);
    assert!(end.console.contains("Unable to mount root fs"), "{}", end.console);
}

#[test]
fn all_of_32_processors_start() {
    let mut config = config("echo there are $(nproc) processors; echo o > /proc/sysrq-trigger; sleep 100");
    config["vcpus"] = 32.into();
    config["memory_mib"] = 1024.into();
    let end = Machine::start(config).end();
    assert_eq!(end.words.reason, ExitReason::PowerOff, "{}\n{}", end.stderr, end.console);
    assert!(end.console.contains("there are 32 processors"), "{}", end.console);
}
