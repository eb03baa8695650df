//! What a machine, a container and another user must not reach; and what the jail leaves the VMM.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command};

use crate::stage::{ALICE, BOB, Workspace, wait_until};

#[test]
fn another_uid_sees_and_touches_nothing_of_mine() {
    let workspace = Workspace::with_image(ALICE, "mine", "");
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
    let mine = Workspace::with_image(ALICE, "net", "");
    mine.up(&[]).ok();
    // A listener on every address of the host, loopback included: none may answer.
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let connect = |address: &str, port: u16| {
        mine.exec(&[
            "timeout",
            "3",
            "python3",
            "-c",
            &format!("import socket; socket.create_connection(('{address}', {port}), 2)"),
        ])
        .status
    };
    for address in host_addresses() {
        assert_ne!(connect(&address, port), 0, "the host answered on {address}");
    }
    // The listener does answer from where it may be reached, so the test can fail.
    TcpStream::connect(("127.0.0.1", port)).unwrap();

    // A server beyond the host, as a cloud has one for its secrets. It answers the host on both of its addresses.
    let _beyond = Beyond::open();
    for address in [Beyond::PUBLIC, Beyond::METADATA] {
        wait_until("the server beyond answers", 10, || TcpStream::connect((address, 80)).is_ok());
    }
    assert_eq!(connect(Beyond::PUBLIC, 80), 0, "the world beyond the host is out of reach");
    assert_ne!(connect(Beyond::METADATA, 80), 0, "the metadata address answered");

    // Bob's machine listens on its own address, and answers there.
    let config = r#"{ "image": "docker.io/library/busybox:latest", "runArgs": ["--network=host"] }"#;
    let theirs = Workspace::with_config(BOB, "net", config);
    theirs.up(&[]).ok();
    let guest = theirs.developer_machine_address();
    theirs.exec(&["httpd", "-p", "7777", "-h", "/tmp"]).ok();
    theirs.sh(&format!("nc -w 3 {guest} 7777 </dev/null")).ok();
    assert_ne!(connect(&guest, 7777), 0, "bob's machine answered alice's");
}

#[test]
fn names_resolve_in_containers() {
    let workspace = Workspace::with_image(ALICE, "names", "");
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
    let workspace = Workspace::with_image(ALICE, "jail", "");
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
    let uids: Vec<u32> = field("Uid").split_whitespace().map(|uid| uid.parse().unwrap()).collect();
    assert!(uids.iter().all(|uid| (2_000_000_000..2_000_065_536).contains(uid)), "{uids:?}");
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

/// A web server in a network namespace next to the host, on a public address (one that is reserved for documentation) and
/// on the one where clouds keep a machine's credentials.
struct Beyond(Child);

impl Beyond {
    const PUBLIC: &str = "198.51.100.7";
    const METADATA: &str = "169.254.169.254";

    fn open() -> Self {
        let commands = [
            "ip netns add beyond",
            "ip link add beyond type veth peer name host netns beyond",
            "ip address add 198.51.100.1/24 dev beyond",
            "ip link set beyond up",
            "ip -n beyond address add 198.51.100.7/24 dev host",
            "ip -n beyond address add 169.254.169.254/32 dev host",
            "ip -n beyond link set host up",
            "ip route add 169.254.169.254 dev beyond",
        ];
        for command in commands {
            let mut words = command.split(' ');
            let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
            assert!(status.success(), "{command}");
        }
        let serve = ["netns", "exec", "beyond", "python3", "-m", "http.server", "80"];
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
