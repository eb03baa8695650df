//! `/etc/garret/config.toml`. Every setting has a default; a file with an unknown setting is rejected.

mod limits;

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use garret_api::agent::{PackageIndexes, Proxy, RegistryMirror};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use tracing_subscriber::filter::Targets;

use crate::host;

pub(crate) use limits::{Limit, Limits, LimitsSection};

/// The configuration file, unless `garret daemon --config` names another.
pub(crate) const CONFIG: &str = "/etc/garret/config.toml";

/// The least memory a machine may have, in MiB.
pub(crate) const MEMORY_MIN_MIB: u32 = 256;
/// The longest filter of messages, in bytes.
const LOG_MAX: usize = 256;
/// The minimum of `connections_max`: fewer connections break a single browser page.
const CONNECTIONS_MIN: u32 = 256;

/// The daemon's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// The folder for data that must survive a reboot: the state and the data disks.
    pub state: PathBuf,
    /// The folder for sockets and mounts of running machines.
    pub run: PathBuf,
    /// Certificate authorities, as a PEM file, that machines trust in addition to their own; an empty path: none.
    pub ca_bundle: PathBuf,
    /// The files from which machines are made.
    pub artifacts: ArtifactsConfig,
    /// The default figures of a machine.
    pub machine: MachineDefaults,
    /// The memory that the host reserves for itself.
    pub memory: MemorySection,
    /// Who may have a machine, and how much.
    pub limits: LimitsSection,
    /// The machines' network.
    pub network: NetworkSection,
    /// Registries that machines ask first for images.
    #[serde(deserialize_with = "strict_list")]
    pub registry_mirrors: Vec<RegistryMirror>,
    /// Proxies for machines, image builds and containers.
    #[serde(deserialize_with = "strict")]
    pub proxy: Proxy,
    /// Package indexes for image builds and containers.
    #[serde(deserialize_with = "strict")]
    pub packages: PackageIndexes,
    /// Rules for what may pass from the caller to the guest.
    pub policy: Policy,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state: "/var/lib/garret".into(),
            run: "/run/garret".into(),
            ca_bundle: "/etc/ssl/certs/ca-certificates.crt".into(),
            artifacts: ArtifactsConfig::default(),
            machine: MachineDefaults::default(),
            memory: MemorySection::default(),
            limits: LimitsSection::default(),
            network: NetworkSection::default(),
            registry_mirrors: Vec::new(),
            proxy: Proxy::default(),
            packages: PackageIndexes::default(),
            policy: Policy::default(),
        }
    }
}

/// Reads a section that is also part of the guest API. In the API, an unknown field comes from a newer version; in a
/// file, it is a typing error.
fn strict<'de, D: Deserializer<'de>, T: DeserializeOwned + Serialize>(from: D) -> Result<T, D::Error> {
    checked(toml::Table::deserialize(from)?).map_err(D::Error::custom)
}

fn strict_list<'de, D: Deserializer<'de>, T: DeserializeOwned + Serialize>(from: D) -> Result<Vec<T>, D::Error> {
    let tables = Vec::<toml::Table>::deserialize(from)?;
    tables.into_iter().map(|table| checked(table).map_err(D::Error::custom)).collect()
}

fn checked<T: DeserializeOwned + Serialize>(written: toml::Table) -> Result<T, String> {
    let section: T = written.clone().try_into().map_err(|error: toml::de::Error| error.message().to_owned())?;
    // Known fields are written again under the same name.
    let known = toml::Table::try_from(&section).map_err(|error| error.to_string())?;
    match written.keys().find(|name| !known.contains_key(*name)) {
        Some(name) => Err(format!("unknown field `{name}`")),
        None => Ok(section),
    }
}

/// `[artifacts]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ArtifactsConfig {
    /// The static `garret-vmm`.
    pub vmm: PathBuf,
    pub kernel: PathBuf,
    /// The guest's root image.
    pub root: PathBuf,
    /// The formatted, empty data disk.
    pub data_template: PathBuf,
}

impl Default for ArtifactsConfig {
    fn default() -> Self {
        let lib = Path::new("/usr/lib/garret");
        Self {
            vmm: lib.join("garret-vmm"),
            kernel: lib.join("vmlinux"),
            root: lib.join("root.erofs"),
            data_template: lib.join("data.ext4"),
        }
    }
}

/// `[machine]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct MachineDefaults {
    /// Virtual CPUs, 1 to 32; absent: those of the host, at most 4.
    pub vcpus: Option<u8>,
    /// The most memory it can have, in MiB, 256 or more; absent: half of the host's, at most 8,192.
    pub memory_mib: Option<u32>,
    /// Memory that it can always have, whatever other machines do, in MiB, 256 or more; absent: a quarter of the most
    /// it can have. A machine that can have less is guaranteed all it can have.
    pub guaranteed_mib: Option<u32>,
    /// Memory at boot, in MiB, 256 or more; the rest is plugged when it is needed.
    pub boot_mib: u32,
    /// What a VMM may use beyond guest memory, in MiB.
    pub memory_overhead_mib: u32,
    /// How long a machine may take until its agent answers, in seconds.
    pub boot_deadline_s: u64,
    /// How long a machine may take to power off before it is killed, in seconds. Also how long an environment may take
    /// to stop, and how long an agent may keep the workspace of a removed environment. Also how long a VMM that the
    /// daemon cannot identify may run after a stop.
    pub stop_deadline_s: u64,
    /// The account or uid with which a machine's VMM runs.
    pub run_as: RunAs,
    /// What VMM and agent log: a filter, as `GARRET_LOG` takes it.
    pub log: String,
}

/// The account or uid with which a machine's VMM runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RunAs {
    /// A uid of its own, which no account has. Workspaces must be on a file system with support for id-mapped mounts.
    #[default]
    OwnUid,
    /// The developer's account: for workspaces on NFS and other file systems without id-mapped mounts.
    Developer,
}

impl Default for MachineDefaults {
    fn default() -> Self {
        Self {
            vcpus: None,
            memory_mib: None,
            guaranteed_mib: None,
            boot_mib: 512,
            memory_overhead_mib: 256,
            boot_deadline_s: 120,
            stop_deadline_s: 60,
            run_as: RunAs::OwnUid,
            log: "info".into(),
        }
    }
}

/// `[memory]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct MemorySection {
    /// Memory in MiB that the host reserves for itself. No machine is guaranteed any of it, and machines are squeezed
    /// before they use it. Absent: a twentieth of the host's memory, at least 256.
    pub reserve_mib: Option<u32>,
}

/// `[network]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct NetworkSection {
    /// The machines' addresses, as `address/prefix`.
    pub pool: String,
    /// Upstream resolvers; empty: those of the host.
    pub resolvers: Vec<IpAddr>,
    /// What machines may reach on the host and in private networks, as `ADDRESS[/PREFIX][:PORTS]`. With ports, TCP and
    /// UDP; without ports, all protocols. Only a single address can open the host itself.
    pub allow: Vec<host::Allow>,
    /// The most connections of one machine at a time, 256 or more; from its next start.
    pub connections_max: u32,
}

impl Default for NetworkSection {
    fn default() -> Self {
        // A package manager opens hundreds of connections; a browser, a build and a crawler together stay below this.
        let connections_max = 8192;
        Self { pool: "100.96.0.0/16".into(), resolvers: Vec::new(), allow: Vec::new(), connections_max }
    }
}

/// `[policy]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Policy {
    /// Names of the caller's variables that `${localEnv:…}` may read; a `*` at the end matches anything. The command
    /// sends only those that the devcontainer.json names.
    pub local_env: Vec<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { local_env: vec!["*".into()] }
    }
}

impl Policy {
    /// Whether the variable may pass.
    pub(crate) fn admits(&self, name: &str) -> bool {
        self.local_env.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == pattern,
        })
    }
}

impl Config {
    /// Reads the file; if it is missing, every setting has its default.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, or has an unknown or invalid setting: the error names file, line and key.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).with_context(|| format!("cannot use {}", path.display())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = toml::from_str(text).map_err(|error| anyhow::anyhow!("{}", located(text, &error)))?;
        if config.machine.vcpus.is_some_and(|vcpus| !(1..=32).contains(&vcpus)) {
            bail!("[machine] vcpus must be 1 to 32");
        }
        let machine = &config.machine;
        for (name, mib) in [
            ("memory_mib", machine.memory_mib),
            ("guaranteed_mib", machine.guaranteed_mib),
            ("boot_mib", Some(machine.boot_mib)),
        ] {
            if mib.is_some_and(|mib| mib < MEMORY_MIN_MIB) {
                bail!("[machine] {name} must be {MEMORY_MIN_MIB} or more");
            }
        }
        if let (Some(guaranteed), Some(memory)) = (machine.guaranteed_mib, machine.memory_mib)
            && guaranteed > memory
        {
            bail!("[machine] guaranteed_mib ({guaranteed}) must not be more than memory_mib ({memory})");
        }
        // It goes to the guest on the kernel's command line.
        let is_word = machine.log.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"=,:_-".contains(&byte));
        if machine.log.len() > LOG_MAX || !is_word || machine.log.parse::<Targets>().is_err() {
            bail!("[machine] log must be a filter such as `info` or `garret_agent=debug`, not `{}`", machine.log);
        }
        config.limits.check()?;
        let pool = parse_pool(&config.network.pool)?;
        let of_pool = format!("is in the pool {}, whose addresses are only for machines", config.network.pool);
        if let Some(resolver) = config.network.resolvers.iter().find(|resolver| is_in(pool, **resolver)) {
            bail!("[network] resolvers: {resolver} {of_pool}");
        }
        if let Some(allow) = config.network.allow.iter().find(|allow| allow.is_within(pool)) {
            bail!("[network] allow: {allow} {of_pool}");
        }
        if config.network.connections_max < CONNECTIONS_MIN {
            bail!("[network] connections_max must be {CONNECTIONS_MIN} or more");
        }
        Ok(config)
    }

    /// The network configuration for the host module. `host_resolvers` are used if the configuration names no
    /// resolvers.
    pub(crate) fn network(&self, host_resolvers: Vec<IpAddr>) -> anyhow::Result<host::NetworkConfig> {
        let resolvers = if self.network.resolvers.is_empty() { host_resolvers } else { self.network.resolvers.clone() };
        let pool = parse_pool(&self.network.pool)?;
        // Only those that machines reach, because each lookup would wait for the others: machines have no IPv6, and get
        // no answer from the pool.
        let reached = resolvers.into_iter().filter(|resolver| resolver.is_ipv4() && !is_in(pool, *resolver));
        Ok(host::NetworkConfig {
            pool,
            resolvers: reached.take(3).collect(),
            allow: self.network.allow.clone(),
            connections_max: self.network.connections_max,
        })
    }

    /// The artifacts for the host module.
    pub(crate) fn artifacts(&self) -> host::Artifacts {
        let ArtifactsConfig { vmm, kernel, root, data_template } = self.artifacts.clone();
        host::Artifacts { vmm, kernel, root, data_template }
    }
}

/// Formats TOML's error of several lines as one line.
fn located(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let message = error.message().replace('\n', " ");
    line.map_or_else(|| message.clone(), |line| format!("line {line}: {message}"))
}

fn parse_pool(pool: &str) -> anyhow::Result<(Ipv4Addr, u8)> {
    let parsed = pool.split_once('/').and_then(|(address, prefix)| Some((address.parse().ok()?, prefix.parse().ok()?)));
    match parsed {
        // Machines' address blocks are aligned to their size; their addresses are computed from that.
        Some((address, prefix)) if (8..=29).contains(&prefix) => match network_of(address, prefix) {
            network if network == address => Ok((address, prefix)),
            network => {
                bail!("[network] pool must be a network, not an address in one: {network}/{prefix}, not `{pool}`")
            }
        },
        _ => bail!("[network] pool must be an IPv4 network such as 100.96.0.0/16, not `{pool}`"),
    }
}

fn is_in((network, prefix): (Ipv4Addr, u8), address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if network_of(address, prefix) == network)
}

/// The address with its host bits set to 0.
fn network_of(address: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(address) & !(u32::MAX >> prefix))
}

/// The nameservers of the first file that names one a machine could reach. This excludes the host's own stub resolver
/// on loopback, for which systemd-resolved keeps the real nameservers in another file.
pub(crate) fn host_resolvers() -> Vec<IpAddr> {
    reachable(["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"].map(Path::new))
}

fn reachable<'a>(tables: impl IntoIterator<Item = &'a Path>) -> Vec<IpAddr> {
    tables
        .into_iter()
        .map(|path| nameservers(&fs::read_to_string(path).unwrap_or_default()))
        .find(|found| !found.is_empty())
        .unwrap_or_default()
}

fn nameservers(resolv_conf: &str) -> Vec<IpAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok())
        .filter(|address: &IpAddr| address.is_ipv4() && !address.is_loopback())
        .collect()
}

#[cfg(test)]
mod tests {
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
            assert!(
                !settings.is_empty() && settings.iter().all(|name| shown.contains_key(name)),
                "{table}: {settings:?}"
            );
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
            (
                "[limits.group.ml]\ndisk_requests_per_s = 99\n",
                "[limits.group.ml] disk_requests_per_s must be 100 or more",
            ),
            (
                "[limits.developer.bob]\nnetwork_packets_per_s = 9\n",
                "[limits.developer.bob] network_packets_per_s must",
            ),
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
        let text =
            "# comment\nnameserver 127.0.0.53\nnameserver 10.0.2.3\nsearch x\nnameserver ::1\nnameserver fd00::3\n";
        assert_eq!(nameservers(text), ["10.0.2.3".parse::<IpAddr>().unwrap()]);
        let dir = tempfile::tempdir().unwrap();
        let [real, stub] = ["real", "stub"].map(|name| dir.path().join(name));
        fs::write(&stub, "nameserver 127.0.0.53\noptions edns0\n").unwrap();
        assert!(reachable([real.as_path(), &stub]).is_empty());
        fs::write(&real, "nameserver fd00::3\nnameserver 192.168.0.1\n").unwrap();
        assert_eq!(reachable([real.as_path(), &stub]), ["192.168.0.1".parse::<IpAddr>().unwrap()]);
    }
}
