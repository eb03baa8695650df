use std::process::Command;

/// A small program that runs beside the boot.
pub struct Chore {
    pub name: &'static str,
    pub command: Command,
}

/// All chores.
pub fn all() -> Vec<Chore> {
    let mut loopback = super::program("ip");
    loopback.args(["link", "set", "lo", "up"]);
    let mut chores = vec![Chore { name: "loopback", command: loopback }];
    if super::disk::may_grow() {
        let mut grow = super::program("resize2fs");
        grow.arg(super::disk::DEVICE).stdout(std::process::Stdio::null());
        chores.push(Chore { name: "growing the data disk's file system", command: grow });
    }
    chores
}
