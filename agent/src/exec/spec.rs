//! The complete description of a process to run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use garret_api::stream::WindowSize;

use crate::users::Credentials;

/// A complete description of a process to run: nothing else needs to be looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSpec {
    /// Where it runs.
    pub place: Place,
    /// Program and arguments; never empty. A program without `/` is searched in `env`'s `PATH`.
    pub args: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// The working folder, as the process sees it.
    pub cwd: PathBuf,
    /// The user and groups it runs as: numbers as in the guest or container it runs in.
    pub credentials: Credentials,
    /// A terminal of this size, or three pipes.
    pub terminal: Option<WindowSize>,
}

/// Where a process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the guest itself.
    Guest,
    /// In this running container: with its namespaces, cgroup, seccomp filter, capability bounding set and limits.
    Container {
        /// The container's full id, 64 hexadecimal digits.
        id: String,
    },
}
