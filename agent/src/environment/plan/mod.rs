//! From a configuration and an image to the engine's arguments. Pure.

use std::collections::BTreeMap;

use garret_api::{Code, Problem};
use garret_devcontainer::{Build, Merged, Mount, Resolved};

use super::image::repository;
use super::inspect::Config;
use super::mounts::WorkspacePaths;
use super::names::{built_image, container_name, label};
use super::record::ImageRecord;

/// Beyond this size the engine starts the container's log again. The agent shows less than this of it.
const LOG_FILE_MAX: &str = "4mb";

/// Keeps a container alive and ends it at once when asked; with arguments, runs them instead. Entrypoints that features
/// add to the image run before it. `sleep` runs in the background with `wait`, because a shell handles a signal only
/// between commands.
const KEEP_ALIVE: &str = "exec \"$@\"\nwhile :; do sleep 86400 & wait $!; done";

/// The input of [`build_args`].
#[derive(Debug)]
pub(super) struct BuildPlan<'a> {
    /// The environment.
    pub id: &'a str,
    /// The path of the Dockerfile in the guest.
    pub dockerfile: &'a str,
    /// The path of the context in the guest.
    pub context: &'a str,
    /// The other build properties.
    pub build: &'a Build,
    /// Environment variables of the build's commands. The proxies are not included: the engine passes them on by
    /// itself.
    pub env: &'a BTreeMap<String, String>,
    /// The path of the file with [`Variables::file`] of the build's arguments.
    pub arg_file: &'a str,
    /// Builds without the cache, and pulls newer base images.
    pub no_cache: bool,
}

/// `podman build …`.
pub(super) fn build_args(plan: &BuildPlan<'_>) -> Vec<String> {
    // The Docker format keeps SHELL and HEALTHCHECK, which an OCI image cannot hold.
    let mut args = words(&["build", "--format", "docker", "--tag", &built_image(plan.id), "--file", plan.dockerfile]);
    args.push(format!("--label={}", label(plan.id)));
    if let Some(target) = plan.build.target.as_deref().filter(|target| !target.is_empty()) {
        args.extend(words(&["--target", target]));
    }
    if plan.no_cache {
        args.extend(words(&["--no-cache", "--pull=newer"]));
    } else {
        args.extend(plan.build.cache_from.iter().map(|image| format!("--cache-from={}", repository(image))));
    }
    // For the build's commands only, not in the image: the host's settings may change.
    args.extend(plan.env.iter().map(|(name, value)| format!("--env={name}={value}")));
    args.extend(plan.env.keys().map(|name| format!("--unsetenv={name}")));
    if !plan.build.args.is_empty() {
        args.push(format!("--build-arg-file={}", plan.arg_file));
    }
    args.extend(variables(&plan.build.args).inherited.into_keys().map(|name| format!("--build-arg={name}")));
    args.extend(plan.build.options.iter().cloned());
    args.push(plan.context.to_owned());
    args
}

/// The input of [`run_args`].
#[derive(Debug)]
pub(super) struct RunPlan<'a> {
    /// The environment.
    pub id: &'a str,
    pub workspace: WorkspacePaths<'a>,
    /// The configuration of devcontainer.json.
    pub resolved: &'a Resolved,
    /// The configuration merged with the image's metadata.
    pub merged: &'a Merged,
    /// The image's name.
    pub image: &'a str,
    /// The image's own configuration.
    pub config: &'a Config,
    /// The path of the file with [`Variables::file`].
    pub env_file: &'a str,
}

/// A container's variables, or a build's arguments, in the form passed to the engine. They must not be on its command
/// line, which every process of the guest can read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Variables {
    /// Lines for `--env-file` or `--build-arg-file`.
    pub file: String,
    /// Variables that a line cannot hold: passed in the engine's own environment.
    pub inherited: BTreeMap<String, String>,
}

/// The longest line of an env file, in bytes: the engine reads up to 64 KiB.
const ENV_LINE_MAX: usize = 32 * 1024;

/// Divides a container's variables by how they reach the engine.
pub(super) fn variables(env: &BTreeMap<String, String>) -> Variables {
    let mut variables = Variables::default();
    for (name, value) in env {
        let line = format!("{name}={value}\n");
        let plain = !name.starts_with(['#', ' ', '\t']) && line.matches('\n').count() == 1 && !line.contains('\r');
        if plain && line.len() <= ENV_LINE_MAX {
            variables.file.push_str(&line);
        } else {
            variables.inherited.insert(name.clone(), value.clone());
        }
    }
    variables
}

/// `podman run …` for the container. Later arguments win, so `runArgs` come after garret's own.
///
/// # Errors
/// A mount's source is outside the workspace.
pub(super) fn run_args(plan: &RunPlan<'_>) -> Result<Vec<String>, Problem> {
    let RunPlan { id, workspace, resolved, merged, image, config, env_file } = *plan;
    let mut args = words(&["run", "--detach", "--pull=never", "--name", &container_name(id)]);
    args.extend(words(&["--log-driver", "k8s-file", "--log-opt", &format!("max-size={LOG_FILE_MAX}")]));
    args.push(format!("--label={}", label(id)));
    args.extend(resolved.labels.iter().map(|(name, value)| format!("--label={name}={value}")));
    for mount in all_mounts(resolved, merged)? {
        args.push(format!("--mount={}", workspace.mount(&mount)?.to_argument()));
    }
    args.push(format!("--env-file={env_file}"));
    args.extend(variables(&merged.container_env).inherited.into_keys().map(|name| format!("--env={name}")));
    args.extend(merged.container_user.iter().map(|user| format!("--user={user}")));
    args.extend(workspace.run_args(&resolved.config.own.run_args)?);
    args.extend(merged.init.then(|| "--init".to_owned()));
    args.extend(merged.privileged.then(|| "--privileged".to_owned()));
    args.extend(merged.cap_add.iter().map(|capability| format!("--cap-add={capability}")));
    args.extend(merged.security_opt.iter().map(|option| format!("--security-opt={option}")));
    args.extend(words(&["--entrypoint", "/bin/sh", image, "-c", &start_script(&merged.entrypoints), "-"]));
    if merged.override_command == Some(false) {
        args.extend(config.own_command());
    }
    Ok(args)
}

fn start_script(entrypoints: &[String]) -> String {
    let mut script = "echo Container started\ntrap 'exit 0' TERM\n".to_owned();
    for entrypoint in entrypoints {
        script += &format!("{entrypoint}\n");
    }
    script + KEEP_ALIVE
}

/// All mounts, the workspace's first.
fn all_mounts(resolved: &Resolved, merged: &Merged) -> Result<Vec<Mount>, Problem> {
    let workspace = resolved.workspace_mount.as_deref().map(Mount::parse).transpose();
    let workspace = workspace.map_err(|message| Problem::new(Code::Invalid, format!("workspaceMount: {message}")))?;
    Ok(workspace.into_iter().chain(merged.mounts.iter().map(|entry| entry.mount().clone())).collect())
}

/// Whether a container with these arguments needs the engine's socket.
pub(super) fn needs_engine_socket(run_args: &[String]) -> bool {
    run_args.iter().any(|arg| arg.contains(super::mounts::ENGINE_SOCKET))
}

/// The names of the volumes a container gets.
pub(super) fn volumes(merged: &Merged) -> Vec<String> {
    let mounts = merged.mounts.iter().map(garret_devcontainer::MountEntry::mount);
    mounts.filter(|mount| mount.kind == "volume").filter_map(|mount| mount.source.clone()).collect()
}

/// The user that remote processes run as, before there is a container. The first that is set wins: the merged one, the
/// one from `runArgs`, the container's, the image's.
pub(super) fn remote_user(resolved: &Resolved, merged: &Merged, image: &ImageRecord) -> String {
    let named = merged.remote_user.clone().or_else(|| user_of_run_args(&resolved.config.own.run_args));
    let named = named.or_else(|| merged.container_user.clone()).unwrap_or_else(|| image.user.clone());
    let name = named.split(':').next().unwrap_or_default();
    if name.is_empty() { "root".to_owned() } else { name.to_owned() }
}

fn user_of_run_args(args: &[String]) -> Option<String> {
    args.iter().enumerate().rev().find_map(|(index, arg)| match arg.as_str() {
        "-u" | "--user" => args.get(index + 1).cloned(),
        _ => arg.strip_prefix("-u=").or_else(|| arg.strip_prefix("--user=")).map(str::to_owned),
    })
}

/// Merges devcontainer.json with the image's metadata.
///
/// # Errors
/// The metadata is not valid.
pub(super) fn merge(resolved: &Resolved, image: &ImageRecord) -> Result<Merged, Problem> {
    resolved.merge(image.metadata.as_deref()).map_err(|error| Problem::new(Code::Invalid, error.to_string()))
}

/// The environment of a remote process. Later sources win: the container's own, the variables of the user's shell, the
/// file's `remoteEnv` (where `null` removes a variable), the caller's.
pub(super) fn remote_env(
    container: &BTreeMap<String, String>,
    probed: &BTreeMap<String, String>,
    remote: &BTreeMap<String, Option<String>>,
    request: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut env = container.clone();
    env.extend(probed.clone());
    for (name, value) in remote {
        match value {
            Some(value) => env.insert(name.clone(), value.clone()),
            None => env.remove(name),
        };
    }
    env.extend(request.clone());
    env
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
mod tests;
