//! The target of a command: an environment by folder or id, or a machine by its developer.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use garret_api::client::Client;
use garret_api::runner::Environment;
use rustix::process::geteuid;

/// `[ENVIRONMENT]`
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Target {
    /// The environment: a folder or an id. The default is the current folder.
    #[arg(value_name = "ENVIRONMENT")]
    pub environment: Option<String>,
}

/// `[--machine[=DEVELOPER|ID]]`
#[derive(Clone, Debug, Default, Args)]
pub(super) struct MachineFlag {
    /// The machine itself, not an environment. Another developer's machine requires an administrator.
    #[arg(
        long,
        value_name = "DEVELOPER|ID",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "",
        conflicts_with = "environment"
    )]
    machine: Option<String>,
}

impl MachineFlag {
    /// The machine as paths of the API name it, if the flag was given.
    pub(super) fn name(&self) -> Option<String> {
        self.machine.as_ref().map(|name| if name.is_empty() { me() } else { name.clone() })
    }
}

/// The caller's uid. The daemon knows their name; a uid means the same to both.
pub(super) fn me() -> String {
    geteuid().as_raw().to_string()
}

impl Target {
    /// Finds the environment among those the caller may see.
    ///
    /// # Errors
    /// There is no such environment, or the daemon does not answer.
    pub(super) async fn find(&self, client: &Client) -> anyhow::Result<Environment> {
        let all: Vec<Environment> = client.get("/v1/environments").await?;
        let asked = self.environment.as_deref().unwrap_or(".");
        if let Some(found) = all.iter().find(|environment| environment.id == asked) {
            return Ok(found.clone());
        }
        if !asked.contains('/') && asked != "." && asked != ".." && !Path::new(asked).is_dir() {
            bail!("there is no environment `{asked}`, and no folder of that name: `garret ls` lists them");
        }
        let folder = folder(asked)?;
        match innermost(&all, &folder, geteuid().as_raw()) {
            Some(found) => Ok(found.clone()),
            None => bail!("{} has no environment: `garret up` makes one, `garret ls` lists them", folder.display()),
        }
    }
}

/// A folder's canonical path.
///
/// # Errors
/// It is missing, is not a folder, or the caller may not read it.
pub(super) fn folder(asked: &str) -> anyhow::Result<PathBuf> {
    let path = std::fs::canonicalize(asked).with_context(|| format!("cannot use {asked}"))?;
    if !path.is_dir() {
        bail!("{asked} is not a folder");
    }
    std::fs::read_dir(&path).with_context(|| format!("cannot use {asked}"))?;
    Ok(path)
}

/// The environment whose workspace is the folder or its nearest ancestor; the caller's own before another's.
fn innermost<'a>(all: &'a [Environment], folder: &Path, me: u32) -> Option<&'a Environment> {
    all.iter()
        .filter(|environment| folder.starts_with(&environment.workspace))
        .max_by_key(|environment| (environment.workspace.components().count(), environment.uid == me))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::environment;

    #[test]
    fn the_innermost_workspace_is_meant_and_ones_own_first() {
        let all = [
            environment("a", "alice", "/w"),
            environment("b", "alice", "/w/inner"),
            Environment { uid: 1001, ..environment("c", "bob", "/w/inner") },
        ];
        let meant = |folder: &str, me: u32| innermost(&all, Path::new(folder), me).map(|found| found.id.as_str());
        assert_eq!(meant("/w", 1000), Some("a"));
        assert_eq!(meant("/w/other/deep", 1000), Some("a"));
        assert_eq!(meant("/w/inner/deep", 1000), Some("b"));
        assert_eq!(meant("/w/inner", 1001), Some("c"));
        assert_eq!(meant("/wide", 1000), None);
    }

    #[test]
    fn a_target_that_is_no_folder_is_named() {
        assert!(
            format!("{:#}", folder("/nonexistent").unwrap_err()).starts_with("cannot use /nonexistent: No such file")
        );
        assert_eq!(folder("/etc/passwd").unwrap_err().to_string(), "/etc/passwd is not a folder");
    }
}
