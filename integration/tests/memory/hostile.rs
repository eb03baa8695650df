//! Guests that want more than their share.

use crate::team::{Load, TEAM, Team, machine, mib, wait_slowly};

/// Makes the agent read another meminfo: that of a machine with a terabyte, all of it in use.
const LIE: &str = "printf 'MemTotal: 1073741824 kB\\nMemFree: 0 kB\\nMemAvailable: 0 kB\\nSwapTotal: 0 kB\\nSwapFree: 0 kB\\n' \
                   > /run/lie && mount --bind /run/lie /proc/meminfo";
const TRUTH: &str = "umount /proc/meminfo";

#[test]
fn a_lying_guest_hurts_only_itself() {
    let team = Team::assemble();
    let [liar, honest, ..] = TEAM;
    liar.guest(LIE).ok();
    Load::start_busy(honest, 700, 5).right();
    // The guest's report of used memory counts only as far as the host has measured it.
    let seen = machine(&liar);
    let figure = |name: &str| seen[name].as_u64().expect("a number");
    assert!(figure("working_set") <= figure("resident") + figure("swapped"), "{seen}");
    Load::start(honest, 900, 1).right();
    liar.guest(TRUTH).ok();
    team.all_well();
}

#[test]
fn a_leak_ends_at_its_own_containers_limit() {
    let team = Team::assemble();
    let [leaking, neighbor, ..] = TEAM;
    let load = Load::start_busy(neighbor, 400, 10);
    // A container as podman makes it, with the guest's own root, so that no image is pulled.
    let leak = "mkdir -p /run/rootfs && mount --bind / /run/rootfs && \
                podman run --rm --memory 200m --memory-swap 200m --network none --rootfs /run/rootfs:O \
                sh -c 'head -c 2G /dev/zero | tail -c 2G > /dev/null'; code=$?; umount /run/rootfs; exit $code";
    let ran = leaking.guest(leak);
    assert_ne!(ran.status, 0, "2 GiB fitted into 200 MiB: {ran:?}");
    // Other programs in the same guest continue, and so do the other machines.
    Load::start(leaking, 300, 1).right();
    load.right();
    wait_slowly("the memory is back", 60, || mib(&leaking, "resident") < 500);
    team.all_well();
}
