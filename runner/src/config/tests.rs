use super::*;

#[test]
fn no_file_is_the_default() {
    assert_eq!(Config::read(Path::new("/nonexistent/config.toml")).unwrap(), Config::default());
    assert_eq!(Config::parse("").unwrap(), Config::default());
}

#[test]
fn a_whole_file_is_understood() {
    let config = Config::parse(
        r#"
            ca_bundle = "/etc/ca.pem"
            [artifacts]
            kernel = "/k/vmlinux"
            [machine]
            vcpus = 2
            memory_mib = 2048
            guaranteed_mib = 512
            boot_mib = 384
            [memory]
            reserve_mib = 1024
            [limits]
            memory_mib = 9000
            [limits.group.ml]
            vcpus = 8
            [network]
            pool = "10.99.0.0/16"
            resolvers = ["1.1.1.1"]
            allow = ["10.0.2.2:5000", "10.20.0.0/16:443"]
            connections_max = 1000
            [[registry_mirrors]]
            registry = "docker.io"
            mirror = "10.0.2.2:5000"
            insecure = true
            [proxy]
            http = "http://proxy:3128"
            [packages]
            pip_index_url = "http://pip/simple"
            [policy]
            local_env = ["HOME", "LC_*"]
            "#,
    )
    .unwrap();
    assert_eq!(config.artifacts().kernel, PathBuf::from("/k/vmlinux"));
    assert_eq!(config.artifacts().root, PathBuf::from("/usr/lib/garret/root.erofs"));
    let network = config.network(vec!["9.9.9.9".parse().unwrap()]).unwrap();
    assert_eq!(network.pool, ("10.99.0.0".parse().unwrap(), 16));
    assert_eq!(network.resolvers, ["1.1.1.1".parse::<IpAddr>().unwrap()]);
    let host = ["fd00::1", "100.96.3.3", "9.9.9.9", "::1", "9.9.9.10", "9.9.9.11", "9.9.9.12"]
        .map(|text| text.parse().unwrap());
    let of_host = Config::default().network(host.into()).unwrap().resolvers;
    assert_eq!(of_host, [host[2], host[4], host[5]]);
    assert_eq!(network.allow, ["10.0.2.2:5000".parse().unwrap(), "10.20.0.0/16:443".parse().unwrap()]);
    assert_eq!(network.connections_max, 1000);
    assert!(config.registry_mirrors[0].insecure);
    for (name, admitted) in [("HOME", true), ("HOMER", false), ("LC_ALL", true), ("AWS_SECRET_ACCESS_KEY", false)] {
        assert_eq!(config.policy.admits(name), admitted, "{name}");
    }
}

/// `runner/config.toml` with every commented-out setting enabled.
fn reference() -> String {
    let setting = |line: &str| {
        let (name, _) = line.split_once(" = ").unwrap_or((line, ""));
        let table = name.starts_with('[') && name.ends_with(']');
        table || (line.contains(" = ") && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
    };
    let lines = include_str!("../../config.toml").lines().filter_map(|line| line.strip_prefix("# "));
    lines.filter(|line| setting(line)).flat_map(|line| [line, "\n"]).collect()
}

/// The settings of a table, as serde lists them in its error about an unknown setting.
fn settings(table: &str) -> Vec<String> {
    let text = format!("{}\nunknown = 1\n", if table.is_empty() { String::new() } else { format!("[{table}]") });
    let error = toml::from_str::<Config>(&text).unwrap_err().message().to_owned();
    error.split('`').skip(1).step_by(2).filter(|name| *name != "unknown").map(str::to_owned).collect()
}

#[test]
fn the_reference_shows_the_defaults() {
    let config = Config::parse(&reference()).unwrap();
    // These are examples of settings that are absent by default.
    let (Proxy { http, https, no_proxy }, PackageIndexes { pip_index_url, npm_registry, apt_proxy }) =
        (config.proxy.clone(), config.packages.clone());
    assert!([http, https, no_proxy, pip_index_url, npm_registry, apt_proxy].iter().all(Option::is_some));
    assert_eq!(config.registry_mirrors.len(), 1);
    assert_eq!(config.limits.allow_groups, [""; 0]);
    let absent = Config {
        machine: MachineDefaults { vcpus: None, memory_mib: None, guaranteed_mib: None, ..config.machine },
        memory: MemorySection::default(),
        limits: LimitsSection::default(),
        registry_mirrors: Vec::new(),
        proxy: Proxy::default(),
        packages: PackageIndexes::default(),
        ..config
    };
    assert_eq!(absent, Config::default());
}

#[test]
fn the_reference_has_every_setting() {
    let reference: toml::Table = toml::from_str(&reference()).unwrap();
    let maxima = ["limits.group.NAME", "limits.developer.NAME"];
    for table in ["", "artifacts", "machine", "memory", "limits", "network", "policy"].into_iter().chain(maxima) {
        let parts = table.split('.').filter(|part| !part.is_empty());
        let shown = parts.fold(&reference, |table, part| table[part].as_table().unwrap());
        let settings = settings(table);
        assert!(!settings.is_empty() && settings.iter().all(|name| shown.contains_key(name)), "{table}: {settings:?}");
    }
}

#[test]
fn errors_name_line_and_key() {
    for (text, said) in [
        ("[machine]\nvcpu = 3\n", "line 2: unknown field `vcpu`"),
        ("[proxy]\nhtttp = 'x'\n", "unknown field `htttp`"),
        ("[packages]\nnpm = 'x'\n", "unknown field `npm`"),
        ("[[registry_mirrors]]\nregistry = 'a'\nmirror = 'b'\nsecure = true\n", "unknown field `secure`"),
        ("[[registry_mirrors]]\nregistry = 'a'\n", "missing field `mirror`"),
        ("[machine\n", "line 1: "),
        ("[machine]\nvcpus = 33\n", "vcpus must be 1 to 32"),
        ("[machine]\nmemory_mib = 10\n", "memory_mib must be 256 or more"),
        ("[machine]\nguaranteed_mib = 10\n", "[machine] guaranteed_mib must be 256 or more"),
        ("[machine]\nboot_mib = 10\n", "[machine] boot_mib must be 256 or more"),
        ("[machine]\nmemory_mib = 300\nguaranteed_mib = 400\n", "guaranteed_mib (400) must not be more than"),
        ("[limits.group.ml]\nmemory = 1\n", "line 2: unknown field `memory`"),
        ("[limits]\ndisk_mib_per_s = 0\n", "[limits] disk_mib_per_s must be 1 or more"),
        ("[limits.group.ml]\ndisk_requests_per_s = 99\n", "[limits.group.ml] disk_requests_per_s must be 100 or more"),
        ("[limits.developer.bob]\nnetwork_packets_per_s = 9\n", "[limits.developer.bob] network_packets_per_s must"),
        ("[limits]\nnetwork_mib_per_s = 0.5\n", "line 2: "),
        ("[memory]\nreserve_mib = -1\n", "line 2: "),
        ("[network]\npool = \"everything\"\n", "pool must be an IPv4 network"),
        ("[network]\npool = \"100.96.0.4/16\"\n", "not an address in one: 100.96.0.0/16, not `100.96.0.4/16`"),
        ("[network]\npool = \"10.0.128.0/16\"\n", "not an address in one: 10.0.0.0/16"),
        ("[network]\n\nallow = [\"host:80\"]\n", "line 3: `host:80`: the address is not an IPv4 address"),
        ("[network]\nresolvers = [\"100.96.1.1\"]\n", "resolvers: 100.96.1.1 is in the pool 100.96.0.0/16"),
        ("[network]\nallow = [\"100.96.8.0/24:80\"]\n", "allow: 100.96.8.0/24 is in the pool 100.96.0.0/16"),
        ("[network]\nconnections_max = 9\n", "connections_max must be 256 or more"),
        ("[machine]\nlog = \"debug panic=1\"\n", "[machine] log must be a filter such as"),
        ("[machine]\nlog = \"garret=loud\"\n", "not `garret=loud`"),
    ] {
        let error = Config::parse(text).unwrap_err().to_string();
        assert!(error.contains(said), "{text}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn the_hosts_stub_resolver_is_left_out() {
    let text = "# comment\nnameserver 127.0.0.53\nnameserver 10.0.2.3\nsearch x\nnameserver ::1\nnameserver fd00::3\n";
    assert_eq!(nameservers(text), ["10.0.2.3".parse::<IpAddr>().unwrap()]);
    let dir = tempfile::tempdir().unwrap();
    let [real, stub] = ["real", "stub"].map(|name| dir.path().join(name));
    fs::write(&stub, "nameserver 127.0.0.53\noptions edns0\n").unwrap();
    assert!(reachable([real.as_path(), &stub]).is_empty());
    fs::write(&real, "nameserver fd00::3\nnameserver 192.168.0.1\n").unwrap();
    assert_eq!(reachable([real.as_path(), &stub]), ["192.168.0.1".parse::<IpAddr>().unwrap()]);
}
