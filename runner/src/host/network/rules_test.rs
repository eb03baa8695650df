//! Tests the host's rules in network namespaces: a guest, the host, and the network beyond the host.

use std::process::Command;

use super::conntrack::FORGET;
use super::rules::{host_rules, namespace_rules};
use super::tests::network;
use super::{NetworkConfig, TAP};

/// The three namespaces; the script runs in that of the host. No server is needed: a closed port that is reached
/// refuses the connection.
const SETUP: &str = r#"
set -eu
mount -t tmpfs none /run; mkdir /run/netns
ip link set lo up; echo 1 >/proc/sys/net/ipv4/ip_forward
for name in guest beyond; do ip netns add $name; ip -n $name link set lo up; done
ip link add name grt0 type veth peer name eth0 netns guest
ip address add 100.96.0.5/30 dev grt0; ip link set grt0 up
ip -n guest address add 100.96.0.6/30 dev eth0; ip -n guest link set eth0 up; ip -n guest route add default via 100.96.0.5
ip link add name out type veth peer name eth0 netns beyond
ip address add 192.31.196.1/24 dev out; ip address add 10.5.5.5/32 dev out; ip link set out up
ip -n beyond link set eth0 up
for address in 192.31.196.7/24 10.1.2.3/32 10.1.2.4/32 10.0.0.2/32 169.254.169.254/32; do
  ip -n beyond address add $address dev eth0
done
for route in 10.0.0.0/8 169.254.0.0/16; do ip route add $route dev out; done
load() { nft -f "$RULES/$1"; }
load rules
guest() { ip netns exec guest "$@"; }
answers() { timeout 1 bash -c "</dev/tcp/$1/$2" 2>&1 | grep -q 'Connection refused'; }
export -f answers
flood() { guest bash -c "for port in {$1..$2}; do echo >/dev/udp/192.31.196.7/\$port; done" 2>/dev/null; }
refusal() { guest timeout 5 bash -c "</dev/tcp/$1/$2" 2>&1 | grep -om1 'No route to host'; }
reached() { guest bash -c "answers $1 $2" && echo "$1:$2" || true; }
"#;

/// Runs the script in these namespaces with the rules of this configuration; returns its output. `load changed` loads
/// the rules with other resolvers.
fn run_in_namespaces(network: &NetworkConfig, script: &str) -> String {
    let rules = tempfile::tempdir().unwrap();
    let changed = NetworkConfig { resolvers: vec!["10.1.2.4".parse().unwrap()], ..network.clone() };
    for (name, network) in [("rules", network), ("changed", &changed)] {
        std::fs::write(rules.path().join(name), host_rules(network, &[])).unwrap();
    }
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "bash", "-c", &format!("{SETUP}{script}")])
        .env("RULES", rules.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn private_networks_answer_only_where_allowed() {
    let allow = ["10.1.2.3:5000", "10.5.5.0/24", "10.5.5.5:80"].map(|entry| entry.parse().unwrap()).into();
    let reached = run_in_namespaces(
        &NetworkConfig { allow, ..network() },
        "reached 192.31.196.7 80; reached 10.1.2.3 5000; reached 10.1.2.3 5001; reached 10.1.2.4 5000
         reached 169.254.169.254 80; reached 10.0.0.2 53; reached 10.0.0.2 80
         reached 10.5.5.5 80; reached 10.5.5.5 22; reached 192.31.196.1 80; reached 100.96.0.5 80",
    );
    assert_eq!(reached, "192.31.196.7:80\n10.1.2.3:5000\n10.0.0.2:53\n10.5.5.5:80\n");
}

#[test]
fn denied_connections_are_refused_at_once_up_to_a_rate() {
    let printed = run_in_namespaces(
        &network(),
        "refusal 10.1.2.3 5000; refusal 192.31.196.1 80
         guest bash -c 'for port in {1..2000}; do echo >/dev/udp/10.1.2.3/$port; done' 2>/dev/null || true
         nft list chain inet garret refuse | grep -o 'packets [0-9]* bytes' | tr -dc 0-9",
    );
    let (refusals, answers) = printed.rsplit_once('\n').unwrap();
    assert_eq!(refusals, ["No route to host"; 2].join("\n"));
    let answers: u32 = answers.parse().unwrap();
    assert!((50..1000).contains(&answers), "{answers} answers");
}

#[test]
fn no_answer_says_which_machines_run() {
    // A second machine runs: slot 1 of the pool, whose addresses end in 10, 13 and 14. Slot 2 is empty.
    let answered = run_in_namespaces(
        &network(),
        "ip link add grt1 type veth peer name other; ip link set other up
         ip address add 100.96.0.13/30 dev grt1; ip link set grt1 up; ip route add 100.96.0.10/32 via 100.96.0.14
         silent() { status=0; guest timeout 2 bash -c \"</dev/tcp/100.96.0.$1/80\" 2>/dev/null || status=$?; [ $status = 124 ]; }
         probe() { for address in 5 10 13 14 18 21 22; do { silent $address || echo \"$address $1\"; } & done; wait; }
         probe 'without a route'
         ip route add default dev out; probe 'with a route'
         guest sh -c 'echo 1 >/proc/sys/net/ipv4/ip_default_ttl'; probe 'with a time to live of 1'
         timeout 2 bash -c '</dev/tcp/100.96.0.6/80' 2>&1 | grep -om1 'Connection refused'",
    );
    assert_eq!(answered, "Connection refused\n", "the host itself reaches a machine, and no machine hears of another");
}

#[test]
fn a_flood_keeps_to_the_machines_share_of_connections() {
    let count = run_in_namespaces(
        &NetworkConfig { connections_max: 256, ..network() },
        "flood 1000 2999
         cat /proc/sys/net/netfilter/nf_conntrack_count
         answers 192.31.196.7 80; echo host; reached 192.31.196.7 80
         nft list set inet garret_connections count_256 | tr -d '\\n\\t'",
    );
    let mut lines = count.lines();
    let count: u32 = lines.next().unwrap().parse().unwrap();
    assert!((200..=300).contains(&count), "{count}");
    assert_eq!(lines.next(), Some("host"));
    let set = lines.next().unwrap();
    assert!(set.contains("100.96.0.6 ct count over 256 counter packets 1") && !set.starts_with("192"), "{set}");
}

#[test]
fn rules_loaded_again_hold_at_once_and_forget_no_connection() {
    let printed = run_in_namespaces(
        &NetworkConfig { connections_max: 256, ..network() },
        "load changed; reached 10.0.0.2 53; reached 10.1.2.4 53
         flood 1000 1199; load changed; flood 2000 2199; load rules; flood 3000 3199
         cat /proc/sys/net/netfilter/nf_conntrack_count",
    );
    let (reached, count) = printed.trim().split_once('\n').unwrap();
    assert_eq!(reached, "10.1.2.4:53");
    let count: u32 = count.parse().unwrap();
    assert!((200..=300).contains(&count), "{count}");
}

#[test]
fn connections_of_a_machine_that_has_ended_do_not_count_against_the_next() {
    let forget = FORGET.join(" ");
    let printed = run_in_namespaces(
        &NetworkConfig { connections_max: 20, ..network() },
        &format!(
            "count() {{ cat /proc/sys/net/netfilter/nf_conntrack_count; }}
             flood 1000 1199; count; conntrack {forget} 100.96.0.8/29 2>/dev/null || true; count
             conntrack {forget} 100.96.0.0/29 >/dev/null 2>&1; count
             # The kernel forgets a few ended connections with each new one, and at most once a tick.
             flood 2000 2199; sleep 0.1; flood 3000 3199; count"
        ),
    );
    let counts: Vec<u32> = printed.lines().map(|line| line.parse().unwrap()).collect();
    assert!(counts[0] >= 20 && counts[1] >= 20 && counts[2] < 5 && counts[3] >= 20, "{counts:?}");
}

/// The host of these namespaces takes the place of a machine's namespace. The guest is behind `inner`, whose MTU lets
/// all its packets pass. `seen` prints how many fragments and how many whole packets have arrived beyond the uplink,
/// where nothing reassembles fragments. `raw COUNT FLAGS PROTOCOL LENGTH` sends packets with these flags and this
/// offset in their headers.
const NAMESPACE: &str = r#"
ip link add name inner type veth peer name eth1 netns guest; ip address add 100.96.0.1/30 dev inner
ip -n guest address add 100.96.0.2/30 dev eth1
ip link set inner mtu 65535 up; ip -n guest link set eth1 mtu 65535 up
ip -n guest route replace default via 100.96.0.1; ip link set grt0 down; ip link set out name uplink
ip link set uplink up; ip route replace 192.31.196.0/24 dev uplink
beyond() { ip netns exec beyond "$@"; }
begin() {
  nft flush ruleset; nft -f $NAMESPACE_RULES; beyond nft flush ruleset
  beyond nft add table inet seen
  beyond nft add chain inet seen arrived '{ type filter hook prerouting priority -450; }'
  beyond nft add rule inet seen arrived 'ip saddr 100.96.0.2 ip frag-off & 0x3fff != 0 counter drop'
  beyond nft add rule inet seen arrived 'ip saddr 100.96.0.2 counter drop'
}
seen() { beyond nft list table inet seen | grep -o 'packets [0-9]*' | cut -d' ' -f2 | tr '\n' ' '; echo; }
raw() {
  guest perl -MSocket -e '
    my ($count, $flags, $protocol, $length) = @ARGV;
    socket(my $socket, PF_INET, SOCK_RAW, 255) or die $!;
    my $to = inet_aton("192.31.196.7");
    my $header = pack("CCnnnCCna4a4", 0x45, 0, $length, 0, hex $flags, 64, $protocol, 0, inet_aton("100.96.0.2"), $to);
    for (1..$count) { send($socket, $header . "\0" x ($length - 20), 0, sockaddr_in(0, $to)) or die $! }' "$@"
}
"#;

#[test]
fn few_fragments_leave_a_machine() {
    let rules = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(rules.path(), namespace_rules("100.96.0.2".parse().unwrap()).replace(TAP, "inner")).unwrap();
    const UDP: u32 = 17;
    const TCP: u32 = 6;
    for (sent, fragments, others) in [
        // Fragments as sent; fragments that are too large and would be kept whole; and packets that are fragmented only
        // at the uplink.
        (format!("400 2000 {UDP} 1420"), 100..200, 0),
        (format!("400 2000 {UDP} 65000"), 0..1, 0),
        (format!("400 2000 {TCP} 65000"), 0..1, 0),
        (format!("40 0000 {UDP} 65000"), 0..1, 0),
        (format!("40 0000 {TCP} 65000"), 100..200, 0),
        (format!("400 0000 {UDP} 1500"), 0..1, 400),
        (format!("400 4000 {TCP} 1500"), 0..1, 400),
    ] {
        let script = format!("NAMESPACE_RULES={}{NAMESPACE}begin; raw {sent}; seen", rules.path().display());
        let seen = run_in_namespaces(&network(), &script);
        let counts: Vec<u32> = seen.split_whitespace().map(|count| count.parse().unwrap()).collect();
        assert!(fragments.contains(&counts[0]) && counts[1] == others, "{sent}: {counts:?}");
    }
}

#[test]
fn new_connections_come_at_a_bounded_rate() {
    let counts = run_in_namespaces(
        &NetworkConfig { connections_max: 1_000_000, ..network() },
        "flood 1000 12000
         cat /proc/sys/net/netfilter/nf_conntrack_count
         nft list set inet garret_connections rates | grep -c 'counter packets [1-9]'",
    );
    let mut lines = counts.lines();
    let count: u32 = lines.next().unwrap().parse().unwrap();
    assert!((2000..9000).contains(&count), "{count}");
    assert_eq!(lines.next(), Some("1"));
}
