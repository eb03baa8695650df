//! The host's settings for the container engine, image builds and containers.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// The settings of the host that the engine, image builds and containers need.
///
/// `Setup::apply` has already written `env`, `engine_env` and `mounts` into
/// `/etc/containers/containers.conf.d`, where `podman run`, `podman build`, `podman exec` and the API socket
/// (docker-compose) find them by themselves. This value is for callers that need them in another way: `--build-arg`,
/// `--env`, `-v`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Variables for every container and every build step: proxies in both spellings, package indexes, where the
    /// certificates are.
    pub env: BTreeMap<String, String>,
    /// Variables for the engine itself (proxies, certificates), so that it pulls as the host would.
    pub engine_env: BTreeMap<String, String>,
    /// Files of the guest that every container and build step sees, read-only.
    pub mounts: Vec<FactMount>,
}

/// A read-only bind mount of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FactMount {
    /// The file in the guest.
    pub source: PathBuf,
    /// The path in containers.
    pub target: PathBuf,
}
