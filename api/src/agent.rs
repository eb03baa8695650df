//! The guest API: what `garret-agent` answers inside the machine, over vsock, to the host only.
//!
//! | call | body → answer |
//! |---|---|
//! | `GET /v1/agent` | → [`AgentInfo`] |
//! | `PUT /v1/machine` | [`MachineSetup`] → 204; idempotent |
//! | `GET /v1/memory` | → newline-delimited [`MemoryReport`], the first at once, until the caller closes the connection |
//! | `PUT /v1/memory` | [`MemorySqueeze`] → 204; idempotent |
//! | `GET /v1/exec` | WebSocket, [`stream`](crate::stream): a process in the guest itself, as root |
//! | `PUT /v1/environments/{id}` | [`EnvironmentSpec`] → newline-delimited [`Progress`], until it is ready or has failed |
//! | `GET /v1/environments` | → list of [`EnvironmentStatus`] |
//! | `GET /v1/environments/{id}` | → [`EnvironmentStatus`] |
//! | `GET /v1/environments/{id}/exec` | WebSocket: a process in the devcontainer, as its remote user |
//! | `GET /v1/environments/{id}/log` | → text: the container's own output, its last [`LOG_MAX`] bytes |
//! | `POST /v1/environments/{id}/stop` | → 204; the container stops, nothing is removed |
//! | `DELETE /v1/environments/{id}` | → 204; the container, its volumes and its record are removed |
//! | `POST /v1/workspaces/{share}/release` | → 204; nothing in the guest uses that folder any more |
//! | `POST /v1/power-off` | → 202; containers stop, file systems are unmounted, the machine powers off |
//!
//! This is the only channel between host and guest, and only the host opens connections. [`AgentInfo`] is the agent's hello:
//! versions of this API, capabilities, kinds of streams. Runner and agent are often of different versions: an agent runs as
//! long as its machine. Readers tolerate fields and variants they do not know. A writer that depends on a new field asks
//! first whether the agent has the capability. The runner opens only streams of a kind that the agent names.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Problem;
use crate::stream::{StreamKind, WindowSize};

/// The agent's vsock port.
pub const PORT: u32 = 1024;
/// The tag of the one virtio-fs share. The runner mounts each workspace in it, in a folder named by the environment's
/// id.
pub const WORKSPACES_TAG: &str = "workspaces";
/// Where the guest mounts that share.
pub const WORKSPACES_DIR: &str = "/workspaces";
/// The most of a container's output that is kept and returned, in bytes.
pub const LOG_MAX: u64 = 1 << 20;

/// The versions of the guest API that this build supports.
pub const API: ApiRange = ApiRange { min: 1, max: 1 };
/// Capability: `PUT /v1/environments/{id}` uses [`EnvironmentSpec::generation`].
pub const GENERATIONS: &str = "environment-generations";

/// A range of versions of the guest API, both ends included. The version changes only when an older peer would misread
/// a message. A new field is enough if an older peer can ignore it; otherwise it comes with a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiRange {
    /// The oldest version.
    pub min: u32,
    /// The newest version.
    pub max: u32,
}

impl Default for ApiRange {
    /// The range of an agent that does not report one.
    fn default() -> Self {
        Self { min: 1, max: 1 }
    }
}

impl ApiRange {
    /// Whether the two ranges have a version in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.min <= other.max && other.min <= self.max
    }
}

/// `GET /v1/agent`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgentInfo {
    /// The agent's version.
    pub version: String,
    /// The kernel's boot id, which changes with each boot.
    pub boot_id: String,
    /// The agent's process id. If it changed and the boot id did not, the agent was restarted.
    pub pid: u32,
    /// Whether a `PUT /v1/machine` has succeeded since boot.
    pub set_up: bool,
    /// The versions of the guest API that the agent supports.
    #[serde(default)]
    pub api: ApiRange,
    /// The names of the capabilities that the agent has beyond the first release of its API version.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// The kinds of streams that it serves. An agent that does not name them serves `exec`.
    #[serde(default = "exec_only")]
    pub streams: Vec<StreamKind>,
}

fn exec_only() -> Vec<StreamKind> {
    vec![StreamKind::Exec]
}

impl AgentInfo {
    /// Whether the agent has a capability, such as [`GENERATIONS`].
    pub fn can(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|known| known == capability)
    }
}

/// The settings that the machine gets from its host: name, network, and access to images and packages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MachineSetup {
    /// The machine's host name.
    pub hostname: String,
    /// The settings of `eth0`; absent: no network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkSetup>,
    /// Certificate authorities that the guest, image builds and containers trust in addition to their own, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<String>,
    /// Mirrors to pull images from first.
    #[serde(default)]
    pub registry_mirrors: Vec<RegistryMirror>,
    /// Proxies for the guest, image builds and containers.
    #[serde(default)]
    pub proxy: Proxy,
    /// Package indexes for image builds and containers.
    #[serde(default)]
    pub packages: PackageIndexes,
}

/// The guest's one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkSetup {
    /// The guest's address.
    #[schema(value_type = String)]
    pub address: Ipv4Addr,
    /// The prefix's length, 1 to 32.
    pub prefix: u8,
    /// The default route.
    #[schema(value_type = String)]
    pub gateway: Ipv4Addr,
    /// Upstream resolvers, at most 3.
    #[schema(value_type = Vec<String>)]
    pub resolvers: Vec<IpAddr>,
    /// The interface's MTU in bytes, 1280 to 65,535.
    pub mtu: u16,
}

/// A mirror from which images of `registry` are pulled first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RegistryMirror {
    /// The registry that images name, such as `mcr.microsoft.com`.
    pub registry: String,
    /// `host[:port][/path]`, without a scheme.
    pub mirror: String,
    /// Whether to allow plain HTTP and certificates that no trusted authority signed.
    #[serde(default)]
    pub insecure: bool,
}

/// Proxies, in the form of the environment variables of the same names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Proxy {
    /// `http_proxy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// `https_proxy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub https: Option<String>,
    /// `no_proxy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_proxy: Option<String>,
}

/// Package indexes. An absent field leaves the image's setting unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PackageIndexes {
    /// pip's `index-url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pip_index_url: Option<String>,
    /// npm's `registry`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub npm_registry: Option<String>,
    /// The apt proxy (`Acquire::http::Proxy`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apt_proxy: Option<String>,
}

/// The first frame of an exec stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecRequest {
    /// The program and its arguments. Empty: the user's login shell, interactive if there is a terminal.
    #[serde(default)]
    pub command: Vec<String>,
    /// Variables added to the environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The working folder; absent: the home folder in the guest, or the workspace folder in a container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// The user, by name or number; absent: root in the guest, or the remote user in a container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The size of the process's terminal; absent: no terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<WindowSize>,
}

/// The devcontainer to bring up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EnvironmentSpec {
    /// The folder below [`WORKSPACES_DIR`] that holds the workspace.
    pub share: String,
    /// The workspace's path on the host: `${localWorkspaceFolder}`. The agent resolves mount sources below it in the
    /// share.
    pub host_path: String,
    /// The path of the devcontainer.json to use, relative to the workspace. Absent: the agent looks for it where the
    /// specification says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// The caller's variables for `${localEnv:…}`, filtered by the runner's policy.
    #[serde(default)]
    pub local_env: BTreeMap<String, String>,
    /// Whether to remove the container and build it again without a cache. The agent does this once per generation.
    #[serde(default)]
    pub rebuild: bool,
    /// The number of the environment's run. A request with the same number joins the run in progress. One with a larger
    /// number cancels and replaces the run, and one with a smaller number is rejected. 0, from a runner that does not
    /// count, joins. Sent only to agents with [`GENERATIONS`].
    #[serde(default, skip_serializing_if = "is_zero")]
    pub generation: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// One line of the progress of an environment that starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Progress {
    /// A step began: `pull image`, `build image`, `create container`, `onCreateCommand`, …
    Started {
        /// The step's name.
        step: String,
    },
    /// Output of a step, as it is printed. It need not be whole lines.
    Output {
        /// The step's name.
        step: String,
        /// The text. Bytes that are not UTF-8 are replaced.
        text: String,
    },
    /// A step succeeded.
    Finished {
        /// The step's name.
        step: String,
        /// How long it took, in milliseconds.
        ms: u64,
    },
    /// A step failed, and with it the run. This is the last line of the stream.
    Failed {
        /// The step's name.
        step: String,
        /// What is wrong and what to do.
        problem: Problem,
    },
    /// The environment is ready. This is the last line of the stream.
    Ready {
        /// The environment's state.
        environment: EnvironmentStatus,
    },
    /// A value of a newer version.
    #[serde(other)]
    Unknown,
}

/// The state of one devcontainer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EnvironmentStatus {
    /// The environment's id.
    pub id: String,
    /// The current phase.
    pub phase: EnvironmentPhase,
    /// The container's id; absent before it is created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    /// The user that commands run as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_user: Option<String>,
    /// The workspace's folder in the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_folder: Option<String>,
    /// Why the environment failed; absent if it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// What an environment is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EnvironmentPhase {
    /// It is starting.
    Starting,
    /// Its container runs, and its lifecycle commands have run.
    Ready,
    /// Its container is stopped.
    Stopped,
    /// A step failed.
    Failed,
    /// A value of a newer version.
    #[serde(other)]
    Unknown,
}

/// A line of `GET /v1/memory`: the guest's memory, in bytes. The guest is not trusted, so the host uses these figures
/// only as hints.
///
/// The agent sends a line each second while the figures change, at least every 10 s, and at once when memory gets
/// short.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MemoryReport {
    /// Memory that the guest's kernel manages. It grows and shrinks as memory is plugged and unplugged.
    pub total: u64,
    /// Free memory (`MemFree`).
    pub free: u64,
    /// Memory that programs could get without swapping (`MemAvailable`).
    pub available: u64,
    /// Page cache and anonymous memory that no process has touched for a minute (in an idle guest 30 s), as the
    /// multi-generational LRU reports it.
    pub cold: u64,
    /// Total swap, which is compressed memory.
    pub swap_total: u64,
    /// Swap in use, before compression.
    pub swap_used: u64,
    /// Memory pressure; absent if the guest's kernel does not report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
    /// Whether memory is short. Such a line is sent at once.
    pub short: bool,
    /// Memory that the agent has reclaimed since it started.
    pub reclaimed: u64,
    /// Processes that the guest's kernel killed for lack of memory since boot, without those killed by a container's
    /// own limit.
    pub oom_kills: u64,
}

/// `PUT /v1/memory`: how much memory the guest should use for now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemorySqueeze {
    /// The most bytes in use (`total` minus `free`), 64 MiB or more. The agent reclaims the coldest memory first, which
    /// may slow programs down. Absent: the agent reclaims only memory that programs do not miss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<u64>,
}

/// One resource's pressure stall information.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Pressure {
    /// Percentage of the last 10 s in which some task waited.
    pub some_avg10: f64,
    /// Microseconds in which some task waited, since boot.
    pub some_total_us: u64,
    /// Percentage of the last 10 s in which all tasks waited.
    pub full_avg10: f64,
    /// Microseconds in which all tasks waited, since boot.
    pub full_total_us: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_without_a_range_has_the_first_version() {
        let old = r#"{"version": "0.1.0", "boot_id": "b", "pid": 1, "set_up": true}"#;
        let info: AgentInfo = serde_json::from_str(old).unwrap();
        assert!(info.api.overlaps(API) && !info.can(GENERATIONS));
        assert_eq!(info.streams, [StreamKind::Exec]);
    }

    #[test]
    fn ranges_overlap_if_they_share_a_version() {
        let range = |min, max| ApiRange { min, max };
        assert!(range(1, 1).overlaps(range(1, 3)) && range(2, 5).overlaps(range(1, 2)));
        assert!(!range(1, 1).overlaps(range(2, 3)) && !range(4, 5).overlaps(range(1, 3)));
    }

    #[test]
    fn an_older_agent_is_not_sent_a_generation() {
        let spec = |generation| EnvironmentSpec {
            share: "s".into(),
            host_path: "/p".into(),
            config: None,
            local_env: BTreeMap::new(),
            rebuild: false,
            generation,
        };
        let text = |generation| serde_json::to_string(&spec(generation)).unwrap();
        assert!(text(3).contains("generation") && !text(0).contains("generation"));
    }

    #[test]
    fn additions_of_a_newer_version_are_tolerated() {
        let setup: MachineSetup =
            serde_json::from_str(r#"{"hostname": "h", "proxy": {"socks": "x"}, "new": 1}"#).unwrap();
        assert_eq!(setup.hostname, "h");
        let status: EnvironmentStatus = serde_json::from_str(r#"{"id": "p", "phase": "hibernated"}"#).unwrap();
        assert_eq!(status.phase, EnvironmentPhase::Unknown);
        let line: Progress = serde_json::from_str(r#"{"kind": "paused", "step": "x"}"#).unwrap();
        assert_eq!(line, Progress::Unknown);
        let kinds: Vec<StreamKind> = serde_json::from_str(r#"["exec", "port"]"#).unwrap();
        assert_eq!(kinds, [StreamKind::Exec, StreamKind::Unknown]);
    }
}
