mod namespaces;

use super::super::tests::network;
use super::*;
use crate::host::program::run;

#[test]
fn nft_takes_the_rules() {
    // `nft --check` parses and evaluates without loading; it needs a network namespace of its own.
    let allow = ["10.1.2.3:5000", "10.0.0.0/8:443,1-1024", "10.0.0.0/16:443", "192.168.0.0/16", "172.16.0.9"];
    let allow = allow.iter().map(|entry| entry.parse().unwrap()).collect();
    for rules in [
        host_rules(&network(), &["10.99.0.24/29".into(), "100.96.0.0/29".into()]),
        host_rules(&NetworkConfig { allow, ..network() }, &[]),
        host_rules(&NetworkConfig { resolvers: vec![], allow: vec![], ..network() }, &[]),
        host_rules(&NetworkConfig { pool: (Ipv4Addr::new(44, 0, 0, 0), 8), ..network() }, &[]),
        namespace_rules(Ipv4Addr::new(100, 96, 0, 6), 8192),
    ] {
        let check = "ip link add uplink type veth peer name beyond; exec nft --check -f -";
        run("unshare", &["--user", "--map-root-user", "--net", "sh", "-c", check], &rules).unwrap();
    }
}

#[test]
fn a_network_is_allowed_beyond_the_host_only() {
    let allow = vec!["10.0.0.0/8:22".parse().unwrap(), "10.1.2.3:5000".parse().unwrap()];
    let rules = host_rules(&NetworkConfig { allow, ..network() }, &[]);
    let chain = |name: &str| {
        let from = rules.find(&format!("chain {name} {{")).unwrap();
        rules[from..].split("\n  }").next().unwrap().to_owned()
    };
    let (input, special) = (chain("input"), chain("special"));
    assert!(!input.contains("10.0.0.0/8") && special.contains("10.0.0.0/8"), "{rules}");
    assert!(input.contains("10.1.2.3/32") && special.contains("10.1.2.3/32"), "{rules}");
    for chain in [input, special] {
        assert!(chain.contains("10.0.0.2 } meta l4proto { tcp, udp } th dport 53"), "{chain}");
    }
}

#[test]
fn ipv6_resolvers_are_no_part_of_the_rules() {
    assert_eq!(dns_condition(&["fd00::1".parse().unwrap()]), None);
    let both = ["fd00::1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
    assert!(dns_condition(&both).unwrap().starts_with("ip daddr { 10.0.0.2 }"));
}
