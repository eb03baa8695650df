//! What a machine, a container and another user must not reach; and what the jail leaves the VMM.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command};
use std::time::Duration;

use crate::settings::{Settings, append, network};
use garret_integration::stage::{ALICE, BOB, Workspace, wait_until};

/// Prints those of the addresses that accept a connection to the port, which comes first.
const CONNECT: &str = r#"
import socket, sys, threading
def connect(address):
    try:
        socket.create_connection((address, int(sys.argv[1])), 5)
        print(address, flush=True)
    except OSError:
        pass
for address in sys.argv[2:]:
    threading.Thread(target=connect, args=(address,)).start()
"#;

#[test]
fn another_uid_sees_and_touches_nothing_of_mine() {
    let workspace = Workspace::shared(ALICE);
    workspace.up(&[]).ok();
    let id = workspace.environment()["id"].as_str().unwrap().to_owned();
    let listed = BOB.json(&["ls"]).to_string();
    assert!(!listed.contains(&id), "{listed}");
    for arguments in
        [vec!["show", &id], vec!["exec", &id, "--", "true"], vec!["stop", &id], vec!["rm", &id], vec!["logs", &id]]
    {
        BOB.garret(&arguments).fails_with(&[&id]);
    }
    workspace.exec(&["true"]).ok();
}

#[test]
fn the_network_is_the_internet_and_nothing_else() {
    let mine = Workspace::shared(ALICE);
    mine.up(&[]).ok();
    // A listener on every address of the host, loopback included: none may answer.
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answering = |addresses: &[&str], port: u16| {
        let port = port.to_string();
        let arguments = ["timeout", "60", "python3", "-c", CONNECT, &port];
        mine.exec(&[&arguments, addresses].concat()).ok().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let none = Vec::<String>::new();
    let host = host_addresses();
    let host: Vec<_> = host.iter().map(String::as_str).collect();
    assert_eq!(answering(&host, port), none, "the host answered");
    // The listener does answer from where it may be reached, so the test can fail.
    TcpStream::connect(("127.0.0.1", port)).unwrap();

    // A server beyond the host, as a cloud has one for its secrets and a company for its own. It answers the host.
    let _beyond = Beyond::open();
    let beyond = [Beyond::PUBLIC, Beyond::METADATA, Beyond::PRIVATE];
    for address in beyond {
        wait_until("the server beyond answers", 10, || TcpStream::connect((address, 80)).is_ok());
    }
    assert_eq!(answering(&beyond, 80), [Beyond::PUBLIC], "only the world beyond the host is to be reached");
    // IPv6 is off, even for a guest that gives itself an address and a neighbor.
    let ipv6 = "ip -6 address add fd00:9::2/64 dev eth0; ip -6 route add default via fd00:9::1 dev eth0; \
                ip -6 neigh replace fd00:9::1 lladdr \"$(ip neigh | awk '/eth0/ && /lladdr/ { print $5; exit }')\" dev eth0";
    let _may_be_off = ALICE.guest(ipv6);
    TcpStream::connect((Beyond::IPV6, 80)).expect("the server beyond answers over IPv6");
    let over_ipv6 = format!("timeout 3 bash -c '</dev/tcp/{}/80'", Beyond::IPV6);
    assert_ne!(ALICE.guest(&over_ipv6).status, 0, "IPv6 answered");

    // Bob's machine listens on its own address, and answers there.
    let config = r#"{ "image": "docker.io/library/busybox:latest", "runArgs": ["--network=host"] }"#;
    let theirs = Workspace::with_config(BOB, "net", config);
    theirs.up(&[]).ok();
    let machine = theirs.machine_address();
    theirs.exec(&["httpd", "-p", "7777", "-h", "/tmp"]).ok();
    theirs.sh("nc -w 3 192.0.0.2 7777 </dev/null").ok();
    assert_eq!(answering(&[&machine], 7777), none, "bob's machine answered alice's");
    let address = format!("{machine}:7777").parse().unwrap();
    assert!(
        TcpStream::connect_timeout(&address, Duration::from_secs(2)).is_err(),
        "it answered an account of the host"
    );
}

#[test]
fn a_private_network_is_reached_where_it_is_allowed() {
    let workspace = Workspace::shared(ALICE);
    workspace.up(&[]).ok();
    let _beyond = Beyond::open();
    wait_until("the server beyond answers", 10, || TcpStream::connect((Beyond::PRIVATE, 80)).is_ok());
    let _settings = Settings::change(|config| append(network(config), "allow", "10.77.0.0/16:80-81"));
    let reach =
        |port: u16| workspace.exec(&["timeout", "3", "bash", "-c", &format!("</dev/tcp/{}/{port}", Beyond::PRIVATE)]);
    // The daemon that has just started must have found its machine again.
    wait_until("the allowed port answers", 60, || reach(80).status == 0);
    // A port without a server refuses; where it is not allowed, the host says so.
    for (port, said) in [(81, "Connection refused"), (82, "No route to host")] {
        let stderr = reach(port).stderr;
        assert!(stderr.contains(said), "{port}: {stderr}");
    }
}

#[test]
fn a_flood_of_connections_stops_no_other_machine() {
    const LIMIT: u32 = 512;
    let other = Workspace::shared(BOB);
    other.up(&[]).ok();
    let _beyond = Beyond::open();
    wait_until("the server beyond answers", 10, || TcpStream::connect((Beyond::PUBLIC, 80)).is_ok());
    // A small limit, which a flood reaches at any speed. It holds for machines that start from now on.
    let _she_may_have_none = ALICE.garret(&["stop", "--machine"]);
    let _settings = Settings::change(|config| drop(network(config).insert("connections_max".into(), LIMIT.into())));
    wait_until("bob's machine is adopted", 60, || other.exec(&["true"]).status == 0);
    let flood = Workspace::shared(ALICE);
    flood.up(&[]).ok();
    let before = connections();
    // The guest's own table is smaller than what the host allows, and the guest's root may enlarge it.
    let enlarge = "echo 1000000 >/proc/sys/net/netfilter/nf_conntrack_max";
    ALICE.guest(enlarge).ok();
    // Datagrams to more ports than there are entries for one machine, and connections that are kept.
    let generator = format!(
        "import socket, threading\n\
         u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); kept = []\n\
         def tcp():\n\
         \x20   for _ in range(2000):\n\
         \x20       s = socket.socket(); s.setblocking(False); s.connect_ex(('{0}', 80)); kept.append(s)\n\
         threading.Thread(target=tcp).start()\n\
         for port in range(1024, 16384):\n\
         \x20   try: u.sendto(b'x', ('{0}', port))\n\
         \x20   except OSError: pass\n\
         print('flooded')",
        Beyond::PUBLIC
    );
    let running =
        std::thread::spawn(move || flood.exec(&["bash", "-c", &format!("ulimit -n 4096; python3 -c \"{generator}\"")]));
    let mut most = 0;
    while !running.is_finished() {
        TcpStream::connect((Beyond::PUBLIC, 80)).expect("the host connects during the flood");
        let line = format!("</dev/tcp/{}/80", Beyond::PUBLIC);
        assert_eq!(other.exec(&["timeout", "10", "bash", "-c", &line]).status, 0, "bob connects during the flood");
        most = most.max(connections());
    }
    running.join().unwrap().ok();
    // The limit of connections, and those that are closed but still in the table.
    assert!(
        most < before + u64::from(LIMIT) + 2000,
        "{most} connections in the host's table, {before} before the flood"
    );
    let namespace = format!("garret-{}", ALICE.machine_id());
    let list = ["netns", "exec", &namespace, "nft", "list", "chain", "inet", "garret", "leaving"];
    let refused = Command::new("ip").args(list).output().unwrap();
    let refused = String::from_utf8(refused.stdout).unwrap();
    let counters =
        refused.split("counter packets ").skip(1).filter_map(|text| text.split(' ').next()?.parse::<u64>().ok());
    assert!(counters.sum::<u64>() > 0, "no connection was refused: {refused}");
    ALICE.garret(&["stop", "--machine"]).ok();
}

/// Entries of the host's table of connections.
fn connections() -> u64 {
    fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap().trim().parse().unwrap()
}

#[test]
fn names_resolve_in_containers() {
    let workspace = Workspace::shared(ALICE);
    workspace.up(&[]).ok();
    // The host's own resolver decides what can be resolved here; what the host resolves, the container must.
    let Some(name) = a_name_the_host_resolves() else { panic!("the host resolves no name: its network is not up") };
    workspace.exec(&["getent", "hosts", &name]).ok();
}

#[test]
fn a_container_cannot_reach_the_agent() {
    let workspace = Workspace::with_image(
        ALICE,
        "vsock",
        r#", "runArgs": ["--privileged", "--security-opt", "seccomp=unconfined"]"#,
    );
    workspace.up(&[]).ok();
    let attempt = "import socket, sys\n\
        for cid in (1, 2, 3, socket.VMADDR_CID_ANY):\n\
        \x20   s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM); s.settimeout(3)\n\
        \x20   try:\n\
        \x20       s.connect((cid, 1024)); s.sendall(b'GET /v1/agent HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n\
        \x20       if s.recv(1): sys.exit(f'cid {cid} answered')\n\
        \x20   except OSError as error: print(cid, error)\n";
    let out = workspace.exec(&["sudo", "python3", "-c", attempt]).ok();
    assert_eq!(out.lines().count(), 4, "{out}");
}

#[test]
fn the_vmm_has_no_capability_and_sees_only_its_own_files() {
    let workspace = Workspace::shared(ALICE);
    workspace.up(&[]).ok();
    let pid = ALICE.machine()["vmm_pid"].as_u64().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {status}"));
        line.split_once(':').unwrap().1.trim().to_owned()
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&field(set), 16).unwrap(), 0, "{set}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2");
    // `revocation` has a host without it.
    let landlock = ALICE.machine()["landlock"].clone();
    assert!(landlock == "enforced" || landlock == "partial", "{landlock}");
    let uids: Vec<u32> = field("Uid").split_whitespace().map(|uid| uid.parse().unwrap()).collect();
    assert!(uids.iter().all(|uid| (2_100_000_000..2_100_065_536).contains(uid)), "{uids:?}");
    let mut root: Vec<String> = fs::read_dir(format!("/proc/{pid}/root/"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    root.sort();
    let expected =
        ["config.json", "data.img", "dev", "garret-vmm", "proc", "root.erofs", "run", "vmlinux", "workspaces"];
    assert_eq!(root, expected);
    for namespace in ["mnt", "net", "pid", "ipc", "uts"] {
        let own = fs::read_link(format!("/proc/self/ns/{namespace}")).unwrap();
        assert_ne!(fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap(), own, "{namespace}");
    }
    let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(group.contains("/garret/"), "{group}");
}

/// A web server in a network namespace next to the host: on a public address (of a block that no program asks for by
/// itself), on the one where clouds keep a machine's credentials, on a company's private one, and over IPv6.
pub(crate) struct Beyond(Child);

impl Beyond {
    pub(crate) const PUBLIC: &str = "192.31.196.7";
    const METADATA: &str = "169.254.169.254";
    const PRIVATE: &str = "10.77.1.7";
    const IPV6: &str = "fd00:8::7";

    pub(crate) fn open() -> Self {
        let commands = [
            "ip netns add beyond",
            "ip link add beyond type veth peer name host netns beyond",
            "ip address add 192.31.196.1/24 dev beyond",
            "ip address add fd00:8::1/64 dev beyond nodad",
            "ip link set beyond up",
            "ip -n beyond address add 192.31.196.7/24 dev host",
            "ip -n beyond address add 169.254.169.254/32 dev host",
            "ip -n beyond address add 10.77.1.7/32 dev host",
            "ip -n beyond address add fd00:8::7/64 dev host nodad",
            "ip -n beyond link set host up",
            "ip -n beyond link set lo up",
            "ip route add 169.254.169.254 dev beyond",
            "ip route add 10.77.0.0/16 dev beyond",
        ];
        for command in commands {
            let mut words = command.split(' ');
            let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
            assert!(status.success(), "{command}");
        }
        let serve = ["netns", "exec", "beyond", "python3", "-m", "http.server", "80", "--bind", "::"];
        Self(Command::new("ip").args(serve).spawn().unwrap())
    }
}

impl Drop for Beyond {
    fn drop(&mut self) {
        let _gone = (self.0.kill(), self.0.wait());
        for arguments in [["link", "del", "beyond"], ["netns", "del", "beyond"]] {
            let _gone = Command::new("ip").args(arguments).status();
        }
    }
}

fn host_addresses() -> Vec<String> {
    let output = Command::new("ip").args(["-4", "-o", "addr"]).output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| Some(line.split_whitespace().nth(3)?.split('/').next()?.to_owned()))
        .filter(|address| address != "127.0.0.1")
        .collect()
}

/// The name of the host's first package mirror: it is there, and can be resolved, on every host these tests run on.
fn a_name_the_host_resolves() -> Option<String> {
    let lists = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
    let text: String =
        lists.chain(["/etc/apt/sources.list".into()]).filter_map(|path| fs::read_to_string(path).ok()).collect();
    let host = text.split("http").nth(1)?.split("//").nth(1)?.split(['/', ':', ' ', '\n']).next()?.to_owned();
    Command::new("getent").args(["hosts", &host]).status().ok()?.success().then_some(host)
}
