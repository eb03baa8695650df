//! `[limits]` of disk and network per second: a machine with limits beside one without, in the same seconds.

use std::thread;

use toml::Table;

use crate::settings::Settings;
use garret_integration::stage::{ALICE, CAROL, Developer};

/// How many times as much the machine without limits must do. It does far more, even on an emulated host.
const TIMES: u64 = 3;

/// Runs `line` in the guest for 10 s; returns by how much the guest's counter in `file`, the `column`-th word, has grown.
fn count(developer: Developer, line: &str, file: &str, column: u32) -> u64 {
    let now = format!("now() {{ set -- $(cat {file}); echo ${column}; }}; before=$(now)");
    let counted = developer.guest(&format!("{now}; timeout 10 {line} 2>/dev/null; echo $(($(now) - before))"));
    counted.ok().trim().parse().expect("a number")
}

/// Counts in both machines at once: first the one with limits.
fn count_both(line: &str, file: &str, column: u32) -> (u64, u64) {
    let alice = thread::spawn({
        let (line, file) = (line.to_owned(), file.to_owned());
        move || count(ALICE, &line, &file, column)
    });
    (count(CAROL, line, file, column), alice.join().expect("it counts"))
}

#[test]
fn a_machine_with_limits_leaves_disk_and_network_to_others() {
    CAROL.make_account();
    let limits = "[limits.developer.carol]\ndisk_mib_per_s = 1\nnetwork_packets_per_s = 100\n";
    let _settings = Settings::change(|config| config.extend(limits.parse::<Table>().expect("TOML")));
    CAROL.garret(&["start", "--machine", "--memory", "512"]).ok();
    ALICE.garret(&["start", "--machine"]).ok();

    // The third word is the number of sectors that were read. They need not have been written.
    let read = "dd if=/dev/vda of=/dev/null bs=256k iflag=direct";
    let (limited, unlimited) = count_both(read, "/sys/block/vda/stat", 3);
    assert!(limited > 0 && unlimited > TIMES * limited, "{limited} and {unlimited} sectors were read");

    // An address of the machines' own network: every packet is dropped without an answer. Each write is a packet.
    let send = "bash -c 'dd if=/dev/zero bs=1000 >/dev/udp/100.96.255.250/9'";
    let (limited, unlimited) = count_both(send, "/sys/class/net/eth0/statistics/tx_packets", 1);
    assert!(limited > 0 && unlimited > TIMES * limited, "{limited} and {unlimited} packets were sent");
    CAROL.garret(&["rm", "--machine", "--yes"]).ok();
}
