//! A machine's network: its own namespace with a TAP, routed to the host over a veth pair.
//!
//! ```text
//! guest eth0 ─ tap0 ┌ namespace garret-<name> ┐ uplink ─ grt<slot> ┌ host ┐ masquerade ─ internet
//!   .2/30      .1/30└─────────────────────────┘  .6/30     .5/30   └──────┘
//! ```
//! Each slot owns eight addresses of the pool: the first /30 lies between guest and namespace, the second between
//! namespace and host. A machine reaches the internet and nothing else: not another machine, not the host's own
//! addresses (but for the endpoints the configuration allows, such as a registry mirror), not the link-local block with
//! the cloud's metadata service. IPv6 is off. The namespace itself drops what does not carry the guest's address.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, bail};
use garret_api::agent::NetworkSetup;

use super::program::run;

/// The TAP's name in the machine's namespace.
pub const TAP: &str = "tap0";
const ADDRESSES_PER_SLOT: u32 = 8;
const MTU: u16 = 1500;

/// A machine's place in the address pool; unique among the machines of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(pub u16);

/// The network all machines share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Where machines get their addresses: network and prefix length (8 to 29).
    pub pool: (Ipv4Addr, u8),
    /// Upstream resolvers given to the guests.
    pub resolvers: Vec<IpAddr>,
    /// TCP endpoints that machines may reach although they lie on the host or in a denied network.
    pub allow: Vec<(Ipv4Addr, u16)>,
}

impl NetworkConfig {
    /// How many machines the pool has room for.
    pub fn slots(&self) -> u16 {
        let addresses = 1u32 << (32 - u32::from(self.pool.1));
        u16::try_from(addresses / ADDRESSES_PER_SLOT).unwrap_or(u16::MAX)
    }
}

/// The four addresses of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Addresses {
    tap: Ipv4Addr,
    guest: Ipv4Addr,
    host: Ipv4Addr,
    uplink: Ipv4Addr,
}

fn addresses(slot: Slot, network: &NetworkConfig) -> Addresses {
    let base = u32::from(network.pool.0) + u32::from(slot.0) * ADDRESSES_PER_SLOT;
    let at = |offset| Ipv4Addr::from(base + offset);
    Addresses { tap: at(1), guest: at(2), host: at(5), uplink: at(6) }
}

/// What the guest is told of its interface.
pub fn guest_network(slot: Slot, network: &NetworkConfig) -> NetworkSetup {
    let addresses = addresses(slot, network);
    NetworkSetup {
        address: addresses.guest,
        prefix: 30,
        gateway: addresses.tap,
        resolvers: network.resolvers.clone(),
        mtu: MTU,
    }
}

/// The guest's hardware address: locally administered, and unique because the guest's address is.
pub fn mac(slot: Slot, network: &NetworkConfig) -> String {
    let [a, b, c, d] = addresses(slot, network).guest.octets();
    format!("06:67:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// The name of the machine's network namespace.
pub fn namespace(name: &str) -> String {
    format!("garret-{name}")
}

fn host_interface(slot: Slot) -> String {
    format!("grt{}", slot.0)
}

/// Loads the packet filter and turns forwarding on.
pub fn prepare(network: &NetworkConfig) -> anyhow::Result<()> {
    if !(8..=29).contains(&network.pool.1) {
        bail!("network pool: the prefix length is {}, it must be 8 to 29", network.pool.1);
    }
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot turn on IPv4 forwarding")?;
    run("nft", &["-f", "-"], &host_rules(network))
}

/// Makes the machine's namespace, TAP and uplink; what is left of an earlier run goes first.
pub fn create(name: &str, slot: Slot, uid: u32, network: &NetworkConfig) -> anyhow::Result<()> {
    remove(name, slot)?;
    let (namespace, uplink) = (namespace(name), host_interface(slot));
    let Addresses { tap, guest, host, uplink: inner } = addresses(slot, network);
    run("ip", &["netns", "add", &namespace], "")?;
    run(
        "ip",
        &["-batch", "-"],
        &format!(
            "link add {uplink} type veth peer name uplink netns {namespace}\n\
             addr add {host}/30 dev {uplink}\nlink set {uplink} up\nroute add {guest}/32 via {inner}\n"
        ),
    )?;
    run(
        "ip",
        &["-netns", &namespace, "-batch", "-"],
        &format!(
            "link set lo up\naddr add {inner}/30 dev uplink\nlink set uplink up\nroute add default via {host}\n\
             tuntap add dev {TAP} mode tap user {uid} vnet_hdr\naddr add {tap}/30 dev {TAP}\n\
             link set {TAP} mtu {MTU} up\n"
        ),
    )?;
    let inside =
        "echo 1 >/proc/sys/net/ipv4/ip_forward && echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6 && nft -f -";
    run("ip", &["netns", "exec", &namespace, "sh", "-c", inside], &namespace_rules(guest))
}

/// Removes the namespace and with it everything in it; the veth's other end goes with its peer.
pub fn remove(name: &str, slot: Slot) -> anyhow::Result<()> {
    let namespace = namespace(name);
    if std::path::Path::new("/run/netns").join(&namespace).exists() {
        run("ip", &["netns", "delete", &namespace], "")?;
    }
    // The kernel takes a namespace down in its own time; the name on the host's side must be free at once.
    let uplink = host_interface(slot);
    if std::path::Path::new("/sys/class/net").join(&uplink).exists() {
        let _already_gone = run("ip", &["link", "delete", &uplink], "");
    }
    Ok(())
}

/// The host's table. It is replaced as a whole and in one transaction, so no packet ever sees half of it.
fn host_rules(network: &NetworkConfig) -> String {
    let pool = format!("{}/{}", network.pool.0, network.pool.1);
    let allowed: Vec<String> = network.allow.iter().map(|(address, port)| format!("{address} . {port}")).collect();
    let elements = if allowed.is_empty() { String::new() } else { format!("elements = {{ {} }}", allowed.join(", ")) };
    let resolvers: Vec<String> = network.resolvers.iter().filter(|r| r.is_ipv4()).map(ToString::to_string).collect();
    let dns = if resolvers.is_empty() {
        String::new()
    } else {
        format!("ip daddr {{ {} }} meta l4proto {{ tcp, udp }} th dport 53 accept", resolvers.join(", "))
    };
    format!(
        r#"table inet garret
delete table inet garret
table inet garret {{
  set allowed {{ type ipv4_addr . inet_service; {elements} }}
  chain input {{
    type filter hook input priority filter - 10; policy accept;
    iifname != "grt*" accept
    ct state established,related accept
    ip daddr . tcp dport @allowed accept
    {dns}
    drop
  }}
  chain from_machine {{
    meta nfproto != ipv4 drop
    ip saddr != {pool} drop
    oifname "grt*" drop
    ip daddr . tcp dport @allowed accept
    {dns}
    ip daddr {{ {pool}, 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3 }} drop
    accept
  }}
  chain forward {{
    type filter hook forward priority filter - 10; policy accept;
    iifname "grt*" goto from_machine
    oifname "grt*" ct state established,related accept
    oifname "grt*" drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {pool} oifname != "grt*" masquerade
  }}
}}
"#
    )
}

/// The namespace's table: only the guest's address leaves, and nobody talks to the namespace itself.
fn namespace_rules(guest: Ipv4Addr) -> String {
    format!(
        r#"table inet garret {{
  chain input {{ type filter hook input priority filter; policy drop; icmp type echo-request accept; }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    iifname "{TAP}" ip saddr {guest} oifname "uplink" accept
    iifname "uplink" ip daddr {guest} oifname "{TAP}" accept
  }}
}}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> NetworkConfig {
        NetworkConfig {
            pool: (Ipv4Addr::new(100, 96, 0, 0), 16),
            resolvers: vec!["10.0.0.2".parse().unwrap()],
            allow: vec![(Ipv4Addr::new(192, 0, 2, 1), 5000)],
        }
    }

    #[test]
    fn slots_never_share_an_address() {
        let network = network();
        let mut seen = std::collections::BTreeSet::new();
        for slot in 0..network.slots() {
            let Addresses { tap, guest, host, uplink } = addresses(Slot(slot), &network);
            for address in [tap, guest, host, uplink] {
                assert!(seen.insert(address), "{address} twice");
                assert_eq!(address.octets()[..2], [100, 96], "{address} left the pool");
            }
        }
        assert_eq!(network.slots(), 8192);
    }

    #[test]
    fn guest_and_tap_share_a_network_and_mac_is_local_unicast() {
        let setup = guest_network(Slot(3), &network());
        assert_eq!(u32::from(setup.address) >> 2, u32::from(setup.gateway) >> 2);
        let first = u8::from_str_radix(&mac(Slot(3), &network())[..2], 16).unwrap();
        assert_eq!(first & 0b11, 0b10);
    }

    #[test]
    fn nft_takes_the_rules() {
        // `nft --check` parses and evaluates without loading; it needs a network namespace of its own.
        for rules in [
            host_rules(&network()),
            host_rules(&NetworkConfig { resolvers: vec![], allow: vec![], ..network() }),
            namespace_rules(Ipv4Addr::new(100, 96, 0, 2)),
        ] {
            run("unshare", &["--user", "--map-root-user", "--net", "nft", "--check", "-f", "-"], &rules).unwrap();
        }
    }
}
