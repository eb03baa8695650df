//! A machine's network: its own namespace with a TAP, routed to the host over a veth pair.
//!
//! ```text
//! guest eth0 ─── tap0 ┌─ namespace garret-<id> ─┐ uplink ─ grt<slot> ┌ host ┐ masquerade ─ internet
//!   192.0.0.2    .1/30└───── source NAT ────────┘  .6/30     .5/30   └──────┘
//! ```
//! Every guest has the same address, so that a machine's memory can continue in another namespace. Each slot owns eight
//! addresses of the pool; the second /30 of them is between namespace and host. A machine reaches only the internet. It
//! reaches no other machine and, unless the configuration allows it, no address of the host and no private or otherwise
//! special network. Examples are the company's network, and the link-local block with the cloud's metadata service. IPv6
//! is off. The namespace drops packets without the guest's address, and limits the machine's connections. No process on
//! the host reaches the guest by an address.

mod allow;
mod conntrack;
mod rules;

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, bail};
use garret_api::MachineId;
use garret_api::agent::NetworkSetup;

use super::program::run;
use rules::{host_rules, namespace_rules};

pub(crate) use allow::Allow;

/// The TAP's name in the machine's namespace.
pub(crate) const TAP: &str = "tap0";
/// The address of every guest, and that of its TAP. They are of the block for hosts behind a translator (RFC 7335), which
/// is in no other network.
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 1);
/// Every guest's hardware address: locally administered, with the guest's address in it.
pub(crate) const MAC: &str = "06:67:c0:00:00:02";
/// Sets a namespace up; the rules come by its standard input. Connections that were refused, and those that are closed, use
/// up the machine's limit and the host's memory for a short time only.
const INSIDE: &str = "cd /proc/sys/net && echo 1 >ipv4/ip_forward && echo 1 >ipv6/conf/all/disable_ipv6 && nft -f - &&
    echo 20 >netfilter/nf_conntrack_tcp_timeout_syn_sent && echo 10 >netfilter/nf_conntrack_tcp_timeout_time_wait";
const ADDRESSES_PER_SLOT: u32 = 8;
const MTU: u16 = 1500;

/// A machine's place in the address pool; unique among the machines of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(pub u16);

/// The network all machines share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetworkConfig {
    /// The pool of the machines' addresses: network and prefix length (8 to 29).
    pub pool: (Ipv4Addr, u8),
    /// Upstream resolvers given to the guests.
    pub resolvers: Vec<IpAddr>,
    /// Destinations that machines may reach although they are on the host or in a special network.
    pub allow: Vec<Allow>,
    /// The most connections of one machine at a time.
    pub connections_max: u32,
}

impl NetworkConfig {
    /// The number of machines that fit the pool.
    pub(crate) fn slots(&self) -> u16 {
        let addresses = 1u32 << (32 - u32::from(self.pool.1));
        u16::try_from(addresses / ADDRESSES_PER_SLOT).unwrap_or(u16::MAX)
    }
}

/// The addresses of a slot. The first four belonged to guest and TAP in earlier versions, whose machines may still run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Addresses {
    host: Ipv4Addr,
    uplink: Ipv4Addr,
}

fn addresses(slot: Slot, network: &NetworkConfig) -> Addresses {
    let base = u32::from(network.pool.0) + u32::from(slot.0) * ADDRESSES_PER_SLOT;
    let at = |offset| Ipv4Addr::from(base + offset);
    Addresses { host: at(5), uplink: at(6) }
}

/// The guest's interface settings. A machine that an earlier version started keeps its address, as its TAP does.
pub(crate) fn guest_network(started: Option<Ipv4Addr>, network: &NetworkConfig) -> NetworkSetup {
    let address = started.unwrap_or(GUEST);
    NetworkSetup {
        address,
        prefix: 30,
        gateway: Ipv4Addr::from(u32::from(address) - 1),
        resolvers: network.resolvers.clone(),
        mtu: MTU,
    }
}

/// The guest's address in a hardware address, which has it in all versions.
pub(crate) fn guest_of(mac: &str) -> Option<Ipv4Addr> {
    let octets: Vec<u8> = mac.split(':').map(|octet| u8::from_str_radix(octet, 16).ok()).collect::<Option<_>>()?;
    match octets[..] {
        [0x06, 0x67, a, b, c, d] => Some(Ipv4Addr::new(a, b, c, d)),
        _ => None,
    }
}

/// The name of the machine's network namespace.
pub(crate) fn namespace(machine: MachineId) -> String {
    format!("garret-{machine}")
}

fn host_interface(slot: Slot) -> String {
    format!("grt{}", slot.0)
}

/// Loads the packet filter and turns forwarding on.
pub(crate) fn prepare(network: &NetworkConfig) -> anyhow::Result<()> {
    if !(8..=29).contains(&network.pool.1) {
        bail!("network pool: the prefix length is {}, it must be 8 to 29", network.pool.1);
    }
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot turn on IPv4 forwarding")?;
    run("nft", &["-f", "-"], &host_rules(network, &running_blocks()?))?;
    make_room(network, 0)
}

/// The address blocks of the running machines. They may belong to a pool that was configured earlier.
fn running_blocks() -> anyhow::Result<Vec<String>> {
    Ok(blocks(&list_addresses(&[])?))
}

/// The output of `ip` for these interfaces' addresses. Interfaces that are gone are left out.
fn list_addresses(interfaces: &[&str]) -> anyhow::Result<String> {
    let command = [&["-4", "-o", "address", "show"], interfaces].concat();
    let listed = std::process::Command::new("ip").args(command).output().context("cannot run `ip`")?;
    Ok(String::from_utf8_lossy(&listed.stdout).into_owned())
}

/// The slots' address blocks in the output of `ip -4 -o address`.
fn blocks(listed: &str) -> Vec<String> {
    let block = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        words.next().filter(|interface| interface.starts_with("grt"))?;
        let address: Ipv4Addr = words.nth(1)?.split('/').next()?.parse().ok()?;
        Some(block_of(address))
    };
    listed.lines().filter_map(block).collect()
}

/// The address block of the slot that has this address.
fn block_of(address: Ipv4Addr) -> String {
    format!("{}/29", Ipv4Addr::from(u32::from(address) & !(ADDRESSES_PER_SLOT - 1)))
}

/// Makes room in the connection table for the machines that have an uplink, plus `more`.
fn make_room(network: &NetworkConfig, more: u64) -> anyhow::Result<()> {
    let names = std::fs::read_dir("/sys/class/net").context("cannot list the network interfaces")?;
    let uplinks = names.flatten().filter(|name| name.file_name().as_encoded_bytes().starts_with(b"grt")).count() as u64;
    conntrack::make_room(uplinks + more, network.connections_max)
}

/// Creates the machine's namespace, TAP and uplink. First removes what an earlier run left.
pub(crate) fn create(machine: MachineId, slot: Slot, uid: u32, network: &NetworkConfig) -> anyhow::Result<()> {
    remove(machine, slot)?;
    make_room(network, 1)?;
    let (namespace, uplink) = (namespace(machine), host_interface(slot));
    let Addresses { host, uplink: inner } = addresses(slot, network);
    // Connections of a machine whose removal was interrupted.
    conntrack::forget(&block_of(inner))?;
    run("ip", &["netns", "add", &namespace], "")?;
    run(
        "ip",
        &["-batch", "-"],
        &format!(
            "link add {uplink} type veth peer name uplink netns {namespace}\n\
             addr add {host}/30 dev {uplink}\nlink set {uplink} up\n"
        ),
    )?;
    run(
        "ip",
        &["-netns", &namespace, "-batch", "-"],
        &format!(
            "link set lo up\naddr add {inner}/30 dev uplink\nlink set uplink up\nroute add default via {host}\n\
             tuntap add dev {TAP} mode tap user {uid} vnet_hdr\naddr add {GATEWAY}/30 dev {TAP}\n\
             link set {TAP} mtu {MTU} up\n"
        ),
    )?;
    run("ip", &["netns", "exec", &namespace, "sh", "-c", INSIDE], &namespace_rules(inner, network.connections_max))
}

/// Removes the namespace and everything in it. The veth's other end is removed with its peer.
pub(crate) fn remove(machine: MachineId, slot: Slot) -> anyhow::Result<()> {
    let namespace = namespace(machine);
    if std::path::Path::new("/run/netns").join(&namespace).exists() {
        run("ip", &["netns", "delete", &namespace], "")?;
    }
    // The kernel removes a namespace asynchronously, but the name on the host's side must be free at once.
    let uplink = host_interface(slot);
    if std::path::Path::new("/sys/class/net").join(&uplink).exists() {
        let listed = list_addresses(&["dev", &uplink])?;
        // The kernel may have removed it meanwhile.
        let _ = run("ip", &["link", "delete", &uplink], "");
        blocks(&listed).iter().try_for_each(|block| conntrack::forget(block))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn network() -> NetworkConfig {
        NetworkConfig {
            pool: (Ipv4Addr::new(100, 96, 0, 0), 16),
            resolvers: vec!["10.0.0.2".parse().unwrap()],
            allow: vec!["192.0.2.1:5000".parse().unwrap()],
            connections_max: 8192,
        }
    }

    #[test]
    fn slots_never_share_an_address() {
        let network = network();
        let mut seen = std::collections::BTreeSet::new();
        for slot in 0..network.slots() {
            let Addresses { host, uplink } = addresses(Slot(slot), &network);
            for address in [host, uplink] {
                assert!(seen.insert(address), "{address} twice");
                assert_eq!(address.octets()[..2], [100, 96], "{address} left the pool");
            }
        }
        assert_eq!(network.slots(), 8192);
    }

    #[test]
    fn everything_of_a_slot_is_in_its_block_and_in_no_other() {
        for prefix in 8..=29 {
            let network = NetworkConfig { pool: (Ipv4Addr::new(10, 0, 0, 0), prefix), ..network() };
            let mut blocks = std::collections::BTreeSet::new();
            for slot in (0..network.slots()).take(100) {
                let Addresses { host, uplink } = addresses(Slot(slot), &network);
                let block = block_of(host);
                assert_eq!(block_of(uplink), block);
                assert!(blocks.insert(block), "slot {slot} of /{prefix}");
            }
        }
    }

    #[test]
    fn guest_and_tap_share_a_network_and_mac_is_local_unicast() {
        let setup = guest_network(None, &network());
        assert_eq!((setup.address, setup.gateway), (GUEST, GATEWAY));
        assert_eq!(u32::from(setup.address) >> 2, u32::from(setup.gateway) >> 2);
        let first = u8::from_str_radix(&MAC[..2], 16).unwrap();
        assert_eq!(first & 0b11, 0b10);
    }

    #[test]
    fn a_started_machine_keeps_its_address() {
        assert_eq!(guest_of(MAC), Some(GUEST));
        let earlier = guest_network(guest_of("06:67:64:60:00:1a"), &network());
        assert_eq!((earlier.address, earlier.gateway), (Ipv4Addr::new(100, 96, 0, 26), Ipv4Addr::new(100, 96, 0, 25)));
        for other in ["", "06:67:01:02:03", "02:67:01:02:03:04", "06:67:01:02:03:xx", "06:67:01:02:03:04:05"] {
            assert_eq!(guest_of(other), None, "{other}");
        }
    }

    #[test]
    fn blocks_of_machines_in_a_former_pool_are_found() {
        let listed = "1: lo    inet 127.0.0.1/8 scope host lo\n\
            7: grt3    inet 10.99.0.29/30 scope global grt3\\       valid_lft forever\n\
            8: grt0    inet 100.96.0.5/30 scope global grt0\n9: eth0    inet 10.0.2.15/24 scope global eth0\n";
        assert_eq!(blocks(listed), ["10.99.0.24/29", "100.96.0.0/29"]);
    }
}
