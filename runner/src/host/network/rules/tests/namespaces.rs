//! Tests the rules in network namespaces: a guest, its machine's namespace, the host, and the network beyond the host.

use std::process::Command;

use crate::host::network::NetworkConfig;
use crate::host::network::conntrack::FORGET;
use crate::host::network::rules::{host_rules, namespace_rules};
use crate::host::network::tests::network;

/// The four namespaces; the script runs in that of the host. No server is needed: a closed port that is reached
/// refuses the connection.
const SETUP: &str = r#"
set -eu
mount -t tmpfs none /run; mkdir /run/netns
ip link set lo up; echo 1 >/proc/sys/net/ipv4/ip_forward
for name in guest machine beyond; do ip netns add $name; ip -n $name link set lo up; done
guest() { ip netns exec guest "$@"; }
machine() { ip netns exec machine "$@"; }
ip link add name grt0 type veth peer name uplink netns machine
ip address add 100.96.0.5/30 dev grt0; ip link set grt0 up
ip -n machine address add 100.96.0.6/30 dev uplink; ip -n machine link set uplink up
ip -n machine route add default via 100.96.0.5; machine sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
ip -n machine link add name tap0 type veth peer name eth0 netns guest
ip -n machine address add 192.0.0.1/30 dev tap0; ip -n machine link set tap0 up
ip -n guest address add 192.0.0.2/30 dev eth0; ip -n guest link set eth0 up; ip -n guest route add default via 192.0.0.1
ip link add name out type veth peer name eth0 netns beyond
ip address add 192.31.196.1/24 dev out; ip address add 10.5.5.5/32 dev out; ip link set out up
ip -n beyond link set eth0 up
for address in 192.31.196.7/24 10.1.2.3/32 10.1.2.4/32 10.0.0.2/32 169.254.169.254/32; do
  ip -n beyond address add $address dev eth0
done
for route in 10.0.0.0/8 169.254.0.0/16; do ip route add $route dev out; done
load() { nft -f "$RULES/$1"; }
load rules; machine nft -f "$RULES/machine"
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
    let uplink = "100.96.0.6".parse().unwrap();
    std::fs::write(rules.path().join("machine"), namespace_rules(uplink, network.connections_max)).unwrap();
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
fn no_answer_reveals_which_machines_run() {
    // A second machine runs: slot 1 of the pool, whose addresses end in 10, 13 and 14. Slot 2 is empty.
    let answered = run_in_namespaces(
        &network(),
        "ip link add grt1 type veth peer name other; ip link set other up
         ip address add 100.96.0.13/30 dev grt1; ip link set grt1 up; ip route add 100.96.0.10/32 via 100.96.0.14
         silent() { status=0; guest timeout 2 bash -c \"</dev/tcp/100.96.0.$1/80\" 2>/dev/null || status=$?; [ $status = 124 ]; }
         probe() { for address in 5 10 13 14 18 21 22; do { silent $address || echo \"$address $1\"; } & done; wait; }
         probe 'without a route'
         ip route add default dev out; probe 'with a route'
         # The second hop is the host.
         guest sh -c 'echo 2 >/proc/sys/net/ipv4/ip_default_ttl'; probe 'with a time to live of 2'",
    );
    assert_eq!(answered, "");
}

#[test]
fn a_guest_pings_its_gateway_and_the_host_cannot_reach_it() {
    let printed = run_in_namespaces(
        &network(),
        "ping() {
           guest perl -MSocket -e '
             socket(my $socket, PF_INET, SOCK_RAW, 1) or die $!; alarm 1;
             send($socket, pack(\"CCnnn\", 8, 0, 0xf7fe, 0, 1), 0, sockaddr_in(0, inet_aton($ARGV[0]))) or die $!;
             recv($socket, my $answer, 100, 0); exit ord(substr($answer, 20))' $1
         }
         ping 192.0.0.1 && echo gateway; ping 192.31.196.7 && echo beyond; ping 100.96.0.6 2>/dev/null && echo uplink
         machine cat /proc/sys/net/netfilter/nf_conntrack_count
         ip route add 192.0.0.2/32 via 100.96.0.6
         for address in 100.96.0.6 192.0.0.2; do ! timeout 1 bash -c \"</dev/tcp/$address/80\" 2>&1 | grep -q refused || echo $address; done",
    );
    assert_eq!(printed, "gateway\nbeyond\n1\n", "the ping of the gateway is not tracked");
}

#[test]
fn a_flood_keeps_to_the_machines_share_of_connections() {
    let count = run_in_namespaces(
        &NetworkConfig { connections_max: 256, ..network() },
        "flood 1000 2999
         cat /proc/sys/net/netfilter/nf_conntrack_count
         answers 192.31.196.7 80; echo host; reached 192.31.196.7 80
         machine nft list chain inet garret leaving | grep 'ct count'",
    );
    let mut lines = count.lines();
    let count: u32 = lines.next().unwrap().parse().unwrap();
    assert!((200..=300).contains(&count), "{count}");
    assert_eq!(lines.next(), Some("host"));
    let rule = lines.next().unwrap();
    assert!(rule.contains("ct count over 256 counter packets 1"), "{rule}");
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
fn connections_of_a_machine_that_has_ended_are_forgotten() {
    let forget = FORGET.join(" ");
    let printed = run_in_namespaces(
        &NetworkConfig { connections_max: 20, ..network() },
        &format!(
            "count() {{ cat /proc/sys/net/netfilter/nf_conntrack_count; }}
             flood 1000 1199; count; conntrack {forget} 100.96.0.8/29 2>/dev/null || true; count
             conntrack {forget} 100.96.0.0/29 >/dev/null 2>&1; count"
        ),
    );
    let counts: Vec<u32> = printed.lines().map(|line| line.parse().unwrap()).collect();
    assert!(counts[0] >= 20 && counts[1] >= 20 && counts[2] < 5, "{counts:?}");
}

/// The link between guest and machine lets packets of all lengths pass. `seen` prints how many fragments and how many
/// whole packets have arrived at the host, where nothing reassembles fragments. `raw COUNT FLAGS PROTOCOL LENGTH` sends
/// packets with these flags and this offset in their headers, and `datagrams COUNT LENGTH` lets the guest fragment.
const FRAGMENTS: &str = r#"
nft flush ruleset; nft add table inet seen
nft add chain inet seen arrived '{ type filter hook prerouting priority -450; }'
nft add rule inet seen arrived 'ip saddr 100.96.0.6 ip frag-off & 0x3fff != 0 counter drop'
nft add rule inet seen arrived 'ip saddr 100.96.0.6 counter drop'
nft add rule inet seen arrived 'iifname grt0 ip protocol { tcp, udp } counter drop'
ip -n machine link set tap0 mtu 65535; ip -n guest link set eth0 mtu 65535
seen() { nft list table inet seen | grep -o 'packets [0-9]*' | cut -d' ' -f2 | tr '\n' ' '; echo; }
datagrams() {
  ip -n guest link set eth0 mtu 1500
  guest perl -MSocket -e '
    socket(my $socket, PF_INET, SOCK_DGRAM, 0) or die $!;
    for (1..$ARGV[0]) { send($socket, "\0" x $ARGV[1], 0, sockaddr_in(9, inet_aton("192.31.196.7"))) or die $! }' "$@"
}
raw() {
  guest perl -MSocket -e '
    my ($count, $flags, $protocol, $length) = @ARGV;
    socket(my $socket, PF_INET, SOCK_RAW, 255) or die $!;
    my ($from, $to) = (inet_aton("192.0.0.2"), inet_aton("192.31.196.7"));
    my $ip = pack("CCnnnCCna4a4", 0x45, 0, $length, 0, hex $flags, 64, $protocol, 0, $from, $to);
    my $packet = pack("nnnn", 1000, 9, $length - 20, 0) . "\0" x ($length - 28);
    if ($protocol == 6) {
      my $tcp = sub { pack("nnNNCCnnn", 1000, 9, 1, 0, 5 << 4, 2, 1024, shift, 0) . "\0" x ($length - 40) };
      my $sum = unpack("%32n*", pack("a4a4CCn", $from, $to, 0, 6, $length - 20) . $tcp->(0));
      $sum = ($sum & 0xffff) + ($sum >> 16) while $sum >> 16;
      $packet = $tcp->(~$sum & 0xffff);
    }
    for (1..$count) { send($socket, $ip . $packet, 0, sockaddr_in(0, $to)) or die $! }' "$@"
}
"#;

#[test]
fn few_fragments_leave_a_machine() {
    const UDP: u32 = 17;
    const TCP: u32 = 6;
    for (sent, fragments, others) in [
        // Fragments that the namespace reassembles, and packets that are fragmented only at the uplink.
        ("datagrams 200 2900".to_owned(), 100..200, 0),
        (format!("raw 40 0000 {TCP} 65000"), 100..200, 0),
        // Fragments of which the rest never comes, and fragments and packets that are too large.
        (format!("raw 400 2000 {UDP} 1420"), 0..1, 0),
        (format!("raw 400 2000 {UDP} 65000"), 0..1, 0),
        (format!("raw 400 2000 {TCP} 65000"), 0..1, 0),
        (format!("raw 40 0000 {UDP} 65000"), 0..1, 0),
        (format!("raw 400 0000 {UDP} 1500"), 0..1, 400),
        (format!("raw 400 4000 {TCP} 1500"), 0..1, 400),
    ] {
        let seen = run_in_namespaces(&network(), &format!("{FRAGMENTS}{sent}; seen"));
        let counts: Vec<u32> = seen.split_whitespace().map(|count| count.parse().unwrap()).collect();
        assert!(fragments.contains(&counts[0]) && counts[1..] == [others, 0], "{sent}: {counts:?}");
    }
}

#[test]
fn new_connections_come_at_a_bounded_rate() {
    let counts = run_in_namespaces(
        &NetworkConfig { connections_max: 1_000_000, ..network() },
        "flood 1000 12000
         cat /proc/sys/net/netfilter/nf_conntrack_count
         machine nft list chain inet garret leaving | grep -c 'limit rate over .* counter packets [1-9]'",
    );
    let mut lines = counts.lines();
    let count: u32 = lines.next().unwrap().parse().unwrap();
    assert!((2000..9000).contains(&count), "{count}");
    assert_eq!(lines.next(), Some("1"));
}
