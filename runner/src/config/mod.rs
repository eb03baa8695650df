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
mod tests;
