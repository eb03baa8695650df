use std::process::Command;

/// The share of memory that zram may hold, uncompressed.
const ZRAM_SHARE: u64 = 2;

/// A small program that runs beside the boot.
pub struct Chore {
    pub name: &'static str,
    pub command: Command,
}

/// All of them.
pub fn all() -> Vec<Chore> {
    let mut loopback = super::program("ip");
    loopback.args(["link", "set", "lo", "up"]);
    let mut chores = vec![Chore { name: "loopback", command: loopback }];
    match zram() {
        Ok(()) => {
            let mut swap = super::program("sh");
            swap.args(["-c", "mkswap --quiet /dev/zram0 && swapon --priority 100 --discard /dev/zram0"]);
            swap.stdout(std::process::Stdio::null());
            chores.push(Chore { name: "swap in zram", command: swap });
        }
        Err(error) => super::say(format_args!("swap in zram: {error}")),
    }
    if super::disk::may_grow() {
        let mut grow = super::program("resize2fs");
        grow.arg(super::disk::DEVICE).stdout(std::process::Stdio::null());
        chores.push(Chore { name: "growing the data disk's file system", command: grow });
    }
    chores
}

fn zram() -> std::io::Result<()> {
    let info = rustix::system::sysinfo();
    let total = info.totalram * u64::from(info.mem_unit);
    std::fs::write("/sys/block/zram0/disksize", (total / ZRAM_SHARE).to_string())
}
