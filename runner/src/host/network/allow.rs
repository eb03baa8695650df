//! One entry of `[network] allow`: a private network that machines may reach, and on which ports.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// The most ports or port ranges of one entry.
const RANGES_MAX: usize = 64;

/// `ADDRESS[/PREFIX][:PORTS]`: `10.1.2.3:5000`, `10.20.0.0/16`, `192.168.1.10:443,8443`, `10.0.0.0/8:1-1024`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Allow {
    address: Ipv4Addr,
    prefix: u8,
    /// Inclusive, ascending, disjoint. Empty: every port and every protocol; otherwise TCP and UDP.
    ports: Vec<(u16, u16)>,
}

impl Allow {
    /// Whether the entry names one address. Only such an entry opens the host itself.
    pub(crate) fn is_one_address(&self) -> bool {
        self.prefix == 32
    }

    /// Whether all its addresses are in this network.
    pub(crate) fn is_within(&self, (network, prefix): (Ipv4Addr, u8)) -> bool {
        let other_bits = u32::from(self.address) ^ u32::from(network);
        self.prefix >= prefix && other_bits.checked_shr(32 - u32::from(prefix)).unwrap_or(0) == 0
    }

    /// The condition of an nftables rule that matches this entry.
    pub(crate) fn condition(&self) -> String {
        let network = format!("ip daddr {self}");
        if self.ports.is_empty() {
            return network;
        }
        let ports: Vec<String> = self
            .ports
            .iter()
            .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
            .collect();
        format!("{network} meta l4proto {{ tcp, udp }} th dport {{ {} }}", ports.join(", "))
    }
}

/// Address and prefix length, without the ports.
impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Allow {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let problem = |what: &str| {
            format!(
                "`{text}`: {what}; write ADDRESS[/PREFIX][:PORTS], such as 10.1.2.3:5000 or 10.0.0.0/8:443,8000-8100"
            )
        };
        let (network, ports) = match text.split_once(':') {
            Some((network, ports)) => (network, Some(ports)),
            None => (text, None),
        };
        let (address, prefix) = network.split_once('/').unwrap_or((network, "32"));
        let address: Ipv4Addr = address.parse().map_err(|_| problem("the address is not an IPv4 address"))?;
        let prefix: u8 = prefix
            .parse()
            .ok()
            .filter(|prefix| *prefix <= 32)
            .ok_or_else(|| problem("the prefix length is not 0 to 32"))?;
        if u64::from(u32::from(address)) & ((1 << (32 - u32::from(prefix))) - 1) != 0 {
            return Err(problem("the address has bits set beyond the prefix length"));
        }
        let ports = ports.map_or(Ok(Vec::new()), parse_ports).map_err(problem)?;
        Ok(Self { address, prefix, ports })
    }
}

fn parse_ports(text: &str) -> Result<Vec<(u16, u16)>, &'static str> {
    let mut ranges = Vec::new();
    for range in text.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let port = |text: &str| text.parse::<u16>().map_err(|_| "a port is not 0 to 65535");
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err("a port range ends before it starts");
        }
        ranges.push((first, last));
    }
    if ranges.len() > RANGES_MAX {
        return Err("more than 64 ports or port ranges");
    }
    Ok(merged(ranges))
}

/// The same ports in disjoint ranges: nftables refuses a set whose ranges overlap.
fn merged(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut disjoint: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match disjoint.last_mut() {
            Some(before) if first <= before.1 => before.1 = before.1.max(last),
            _ => disjoint.push((first, last)),
        }
    }
    disjoint
}

impl<'de> Deserialize<'de> for Allow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_become_conditions() {
        let ports = "meta l4proto { tcp, udp } th dport";
        for (text, condition) in [
            ("10.1.2.3:5000", format!("ip daddr 10.1.2.3/32 {ports} {{ 5000 }}")),
            ("10.1.2.3", "ip daddr 10.1.2.3/32".into()),
            ("10.20.0.0/16", "ip daddr 10.20.0.0/16".into()),
            ("192.168.1.10:443,8443", format!("ip daddr 192.168.1.10/32 {ports} {{ 443, 8443 }}")),
            ("10.0.0.0/8:1-1024", format!("ip daddr 10.0.0.0/8 {ports} {{ 1-1024 }}")),
            ("10.0.0.0/8:443,80-90,85-100,443", format!("ip daddr 10.0.0.0/8 {ports} {{ 80-100, 443 }}")),
            ("0.0.0.0/0:0-65535", format!("ip daddr 0.0.0.0/0 {ports} {{ 0-65535 }}")),
        ] {
            assert_eq!(text.parse::<Allow>().unwrap().condition(), condition, "{text}");
        }
    }

    #[test]
    fn malformed_entries_are_refused_by_name() {
        for (text, said) in [
            ("", "not an IPv4 address"),
            ("host:80", "not an IPv4 address"),
            ("::1", "not an IPv4 address"),
            ("fd00::/8", "not an IPv4 address"),
            ("10.0.0.0/33", "prefix length"),
            ("10.0.0.0/", "prefix length"),
            ("10.0.0.1/8", "bits set beyond"),
            ("10.0.0.1:", "a port is not"),
            ("10.0.0.1:65536", "a port is not"),
            ("10.0.0.1:80,", "a port is not"),
            ("10.0.0.1:90-80", "ends before it starts"),
            ("10.0.0.1:80:90", "a port is not"),
        ] {
            let problem = text.parse::<Allow>().unwrap_err();
            assert!(problem.starts_with(&format!("`{text}`: ")) && problem.contains(said), "{problem}");
        }
        let many: Vec<String> = (0..=RANGES_MAX).map(|port| (port * 2).to_string()).collect();
        assert!(format!("10.0.0.1:{}", many.join(",")).parse::<Allow>().unwrap_err().contains("more than 64"));
    }

    #[test]
    fn only_a_single_address_opens_the_host() {
        for (text, one) in
            [("10.1.2.3:5000", true), ("10.1.2.3/32", true), ("10.1.2.2/31", false), ("0.0.0.0/0", false)]
        {
            assert_eq!(text.parse::<Allow>().unwrap().is_one_address(), one, "{text}");
        }
    }
}
