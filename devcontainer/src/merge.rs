//! Merges several sources of the same properties (specification, "merge logic").

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{Command, Error, Metadata, MountEntry, Stage, UserEnvProbe, Variables};

/// The image's metadata merged with the file. It serializes with the names that the reference implementation uses.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Merged {
    /// Run an init process.
    pub init: bool,
    /// Run the container privileged.
    pub privileged: bool,
    /// Capabilities added.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cap_add: Vec<String>,
    /// Security options of the engine.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub security_opt: Vec<String>,
    /// Lines of shell that run when the container starts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoints: Vec<String>,
    /// One mount for each target.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountEntry>,
    /// See [`Stage`].
    pub on_create_commands: Vec<Command>,
    /// See [`Stage`].
    pub update_content_commands: Vec<Command>,
    /// See [`Stage`].
    pub post_create_commands: Vec<Command>,
    /// See [`Stage`].
    pub post_start_commands: Vec<Command>,
    /// See [`Stage`].
    pub post_attach_commands: Vec<Command>,
    /// The stage after which the container may be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_for: Option<Stage>,
    /// The user that runs commands; absent: the container's user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_user: Option<String>,
    /// The user that runs the container's own process; absent: the image's user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_user: Option<String>,
    /// The shell that reports the remote user's environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_env_probe: Option<UserEnvProbe>,
    /// Variables of remote processes.
    pub remote_env: BTreeMap<String, Option<String>>,
    /// Variables of the container.
    pub container_env: BTreeMap<String, String>,
    /// Keep the container alive instead of running its own command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub override_command: Option<bool>,
    /// Give the remote user the ids of the workspace's owner.
    #[serde(rename = "updateRemoteUserUID", skip_serializing_if = "Option::is_none")]
    pub update_remote_user_uid: Option<bool>,
}

/// Merges `sources`, least important first: the image's entries in their order, then the file.
pub(crate) fn merge(sources: &[Metadata]) -> Merged {
    let commands = |stage| sources.iter().filter_map(|source| source.command(stage).cloned()).collect();
    Merged {
        init: sources.iter().any(|source| source.init == Some(true)),
        privileged: sources.iter().any(|source| source.privileged == Some(true)),
        cap_add: union(sources, |source| &source.cap_add),
        security_opt: union(sources, |source| &source.security_opt),
        entrypoints: sources.iter().filter_map(|source| source.entrypoint.clone()).filter(|e| !e.is_empty()).collect(),
        mounts: mounts(sources),
        on_create_commands: commands(Stage::OnCreateCommand),
        update_content_commands: commands(Stage::UpdateContentCommand),
        post_create_commands: commands(Stage::PostCreateCommand),
        post_start_commands: commands(Stage::PostStartCommand),
        post_attach_commands: commands(Stage::PostAttachCommand),
        wait_for: last(sources, |source| source.wait_for),
        remote_user: last(sources, |source| source.remote_user.clone().filter(|user| !user.is_empty())),
        container_user: last(sources, |source| source.container_user.clone().filter(|user| !user.is_empty())),
        user_env_probe: last(sources, |source| source.user_env_probe),
        remote_env: sources.iter().flat_map(|source| source.remote_env.clone()).collect(),
        container_env: sources.iter().flat_map(|source| source.container_env.clone()).collect(),
        override_command: last(sources, |source| source.override_command),
        update_remote_user_uid: last(sources, |source| source.update_remote_user_uid),
    }
}

fn last<T>(sources: &[Metadata], property: impl Fn(&Metadata) -> Option<T>) -> Option<T> {
    sources.iter().rev().find_map(property)
}

fn union(sources: &[Metadata], property: impl Fn(&Metadata) -> &Option<Vec<String>>) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for item in sources.iter().filter_map(|source| property(source).as_ref()).flatten() {
        if !all.contains(item) {
            all.push(item.clone());
        }
    }
    all
}

/// All mounts in order; of mounts with the same target, only the last is kept.
fn mounts(sources: &[Metadata]) -> Vec<MountEntry> {
    let mut kept: Vec<MountEntry> = Vec::new();
    for entry in sources.iter().filter_map(|source| source.mounts.as_ref()).flatten() {
        kept.retain(|earlier| earlier.mount().target != entry.mount().target);
        kept.push(entry.clone());
    }
    kept
}

impl Merged {
    /// The commands of a stage inside the container, the image's first.
    pub fn commands(&self, stage: Stage) -> &[Command] {
        match stage {
            Stage::InitializeCommand => &[],
            Stage::OnCreateCommand => &self.on_create_commands,
            Stage::UpdateContentCommand => &self.update_content_commands,
            Stage::PostCreateCommand => &self.post_create_commands,
            Stage::PostStartCommand => &self.post_start_commands,
            Stage::PostAttachCommand => &self.post_attach_commands,
        }
    }

    /// The stage after which the container may be used; `updateContentCommand` unless set.
    pub fn usable_after(&self) -> Stage {
        self.wait_for.unwrap_or(Stage::UpdateContentCommand)
    }

    /// The variables of remote processes in a container with this environment: `${containerEnv:…}` replaced.
    ///
    /// # Errors
    /// `${containerEnv}` without a name. The error names the devcontainer.json as `file`.
    pub fn remote_env_in(
        &self,
        file: &str,
        container_env: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, Option<String>>, Error> {
        let variables = Variables { file, container_env: Some(container_env), ..Variables::default() };
        let replaced = |value: &Option<String>| value.as_ref().map(|value| variables.replace(value)).transpose();
        self.remote_env.iter().map(|(name, value)| Ok((name.clone(), replaced(value)?))).collect()
    }
}
