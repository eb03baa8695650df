//! A guest boots with 512 MiB. Programs that need more than that at once wait until it is plugged.

use garret_integration::stage::{CAROL, LOAD};

#[test]
fn burst_that_outruns_plugging_ends_no_program() {
    CAROL.make_account();
    CAROL.garret(&["start", "--machine", "--memory", "6000"]).ok();
    CAROL.put_load();
    let loads = CAROL.guest(&format!("for i in $(seq 12); do {LOAD} load 400 --hold 1 & done; wait")).ok();
    let right = loads.lines().filter(|line| line.starts_with("right: ")).count();
    let log = CAROL.guest("dmesg | grep -e virtio_mem -e oom-kill -e Killed").out();
    assert_eq!(right, 12, "{loads}{log}");
    CAROL.garret(&["rm", "--machine", "--yes"]).ok();
}
