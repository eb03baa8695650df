//! The packet filter as nftables text: pure functions of the configuration.

use std::net::{IpAddr, Ipv4Addr};

use super::allow::Allow;
use super::{GATEWAY, GUEST, MTU, NetworkConfig, TAP};

/// New connections of one machine per second. A count (`ct count`) visits every connection that it knows, so counted
/// connections must arrive at a limited rate. At this rate, a flood costs a third of one processor.
pub(super) const NEW_CONNECTIONS_PER_S: u32 = 500;
/// The burst of new connections of one machine above that rate: a browser or a package manager opens hundreds.
const NEW_CONNECTIONS_BURST: u32 = 2000;

/// Addresses that are not globally reachable (RFC 6890 and the IANA registry it founded), multicast and reserved
/// addresses. The blocks for documentation (RFC 5737) are left out: no private network uses them, but closed build
/// hosts put their mirrors there.
const SPECIAL: &[&str] = &[
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// ICMP answers for denied packets, per second and machine. With an answer, a connection fails at once instead of after
/// minutes. Linux sends fewer: six at once to one address, then one per second (`icmp_ratelimit`). It also limits the
/// answers of the whole host (`icmp_msgs_per_sec`), before Linux 6.10 ahead of the limit per address: no machine may
/// use up the answers of others.
const REFUSALS_PER_S: u32 = 20;
/// The burst of answers to a machine before the rate applies.
const REFUSALS_BURST: u32 = 50;

/// The most machines that get answers: an address pool has no more slots.
const MACHINES_MAX: u16 = u16::MAX;

/// The host's table: the destinations that machines may reach. It is replaced in one transaction, so that no packet ever
/// meets only half of the rules. `running` are the address blocks of running machines, of whatever pool. Packets that are
/// `invalid` are not translated, and would leave with the machine's own address. The first table limited connections in
/// earlier versions.
pub(super) fn host_rules(network: &NetworkConfig, running: &[String]) -> String {
    let pool = format!("{}/{}", network.pool.0, network.pool.1);
    let machines = std::iter::once(&pool).chain(running).map(String::as_str).collect::<Vec<_>>().join(", ");
    let special = SPECIAL.join(", ");
    let dns = dns_condition(&network.resolvers);
    let to_host = verdicts(network.allow.iter().filter(|allow| allow.is_one_address()), dns.as_deref(), "accept");
    let to_private = verdicts(network.allow.iter(), dns.as_deref(), "return");
    format!(
        r#"table inet garret_connections
delete table inet garret_connections
table inet garret
delete table inet garret
table inet garret {{
  set special {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {special}, {machines} }} }}
  set machines {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {machines} }} }}
  set refusals {{ type ipv4_addr; size {MACHINES_MAX}; flags dynamic; }}
  chain input {{
    type filter hook input priority filter - 10; policy accept;
    iifname != "grt*" accept
    meta nfproto != ipv4 drop
    ct state established,related accept
{to_host}    goto refuse
  }}
  chain special {{
{to_private}    goto refuse
  }}
  # An answer from an address of the pool would say whether a machine has it. Linux itself answers before the other chains:
  # without a route, or when a packet's time to live is over.
  chain arriving {{
    type filter hook prerouting priority mangle; policy accept;
    iifname "grt*" ip daddr @machines ct state != {{ established, related }} drop
  }}
  chain refuse {{
    add @refusals {{ ip saddr limit rate {REFUSALS_PER_S}/second burst {REFUSALS_BURST} packets }} counter reject with icmp admin-prohibited
    drop
  }}
  chain from_machine {{
    meta nfproto != ipv4 drop
    ip saddr != @machines drop
    ct state invalid drop
    oifname "grt*" drop
    ip daddr @special jump special
  }}
  chain forward {{
    type filter hook forward priority filter - 10; policy accept;
    iifname "grt*" goto from_machine
    oifname "grt*" ct state established,related accept
    oifname "grt*" drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr @machines oifname != "grt*" masquerade
  }}
}}
"#
    )
}

/// One rule for each allowed entry, and one for the resolvers.
fn verdicts<'a>(allow: impl Iterator<Item = &'a Allow>, dns: Option<&str>, verdict: &str) -> String {
    let conditions = allow.map(Allow::condition).chain(dns.map(ToOwned::to_owned));
    conditions.map(|condition| format!("    {condition} {verdict}\n")).collect()
}

fn dns_condition(resolvers: &[IpAddr]) -> Option<String> {
    let resolvers: Vec<String> = resolvers.iter().filter(|r| r.is_ipv4()).map(ToString::to_string).collect();
    let list = resolvers.join(", ");
    (!resolvers.is_empty()).then(|| format!("ip daddr {{ {list} }} meta l4proto {{ tcp, udp }} th dport 53"))
}

/// Fragments that may leave a machine per second, and as a burst above that. The host reassembles them before any rule
/// sees them, in memory that all machines and the host share (4 MiB, `ipfrag_high_thresh`). An incomplete packet stays
/// there for 30 s. At this rate, one machine uses a seventh of that memory.
const FRAGMENTS_PER_S: u32 = 5;
const FRAGMENTS_BURST: u32 = 100;

/// The namespace's tables. Only packets with the guest's address leave, translated to that of the uplink, and only few
/// fragments. The namespace itself accepts only a ping of the gateway, which is not tracked.
///
/// A machine's connections are limited here, before any of them is in the host's table. A flow without an answer stays
/// `new`, but its later packets belong to a confirmed entry.
///
/// Connection tracking reassembles fragments, so those that are too long are dropped ahead of it. Fragments are counted at
/// the uplink's egress, because the kernel fragments long packets after the forward chain. Fragments above the MTU are
/// dropped: each could use 64 KiB of memory. Of whole packets above the MTU, only TCP packets pass, because they are
/// normally cut into segments. A TCP packet that is fragmented instead counts at the egress.
pub(super) fn namespace_rules(uplink: Ipv4Addr, connections_max: u32) -> String {
    format!(
        r#"table inet garret {{
  chain arriving {{
    type filter hook prerouting priority -450; policy accept;
    iifname "{TAP}" ip saddr != {GUEST} drop
    iifname "{TAP}" ip frag-off & 0x3fff != 0 meta length > {MTU} drop
    iifname "{TAP}" meta l4proto != tcp meta length > {MTU} drop
    iifname "{TAP}" ip daddr {GATEWAY} notrack
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname "{TAP}" ip daddr {GATEWAY} icmp type echo-request accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    ct state invalid drop
    iifname "uplink" oifname "{TAP}" ct state established,related accept
    iifname "{TAP}" oifname "uplink" goto leaving
  }}
  chain leaving {{
    ct status confirmed accept
    ct state new limit rate over {NEW_CONNECTIONS_PER_S}/second burst {NEW_CONNECTIONS_BURST} packets counter drop
    ct state new ct count over {connections_max} counter drop
    accept
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "uplink" ip saddr {GUEST} snat to {uplink}
  }}
}}
table netdev garret {{
  chain leaving {{
    type filter hook egress device "uplink" priority filter; policy accept;
    ip frag-off & 0x3fff != 0 limit rate over {FRAGMENTS_PER_S}/second burst {FRAGMENTS_BURST} packets drop
  }}
}}
"#
    )
}

#[cfg(test)]
mod tests;
