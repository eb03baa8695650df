//! Small programs that run during the boot: loopback, growing a file system.

use std::process::Command;

/// A small program that runs during the boot.
pub(super) struct BootTask {
    pub name: &'static str,
    pub command: Command,
}

pub(super) fn all() -> Vec<BootTask> {
    let mut loopback = super::program("ip");
    loopback.args(["link", "set", "lo", "up"]);
    let mut boot_tasks = vec![BootTask { name: "loopback", command: loopback }];
    if super::disk::may_grow() {
        let mut grow = super::program("resize2fs");
        grow.arg(super::disk::DEVICE).stdout(std::process::Stdio::null());
        boot_tasks.push(BootTask { name: "growing the data disk's file system", command: grow });
    }
    boot_tasks
}
