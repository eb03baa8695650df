//! The properties that both the file and an image's label may have (specification, "image metadata").

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Command, Error, MountEntry, Stage};

/// The image label with the metadata.
pub const METADATA_LABEL: &str = "devcontainer.metadata";

/// The mergeable properties of one source: the file, or one entry of the image's label.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Run an init process.
    pub init: Option<bool>,
    /// Run the container privileged.
    pub privileged: Option<bool>,
    /// Capabilities added.
    pub cap_add: Option<Vec<String>>,
    /// Security options of the engine.
    pub security_opt: Option<Vec<String>>,
    /// A line of shell that runs when the container starts, before its command.
    pub entrypoint: Option<String>,
    /// Mounts.
    pub mounts: Option<Vec<MountEntry>>,
    /// See [`Stage`].
    pub on_create_command: Option<Command>,
    /// See [`Stage`].
    pub update_content_command: Option<Command>,
    /// See [`Stage`].
    pub post_create_command: Option<Command>,
    /// See [`Stage`].
    pub post_start_command: Option<Command>,
    /// See [`Stage`].
    pub post_attach_command: Option<Command>,
    /// The stage after which the container may be used.
    pub wait_for: Option<Stage>,
    /// The user that runs the lifecycle commands and all later commands.
    pub remote_user: Option<String>,
    /// The user that runs the container's own process.
    pub container_user: Option<String>,
    /// The shell that reports the remote user's environment.
    pub user_env_probe: Option<UserEnvProbe>,
    /// Variables of remote processes; `null` removes a variable from the environment.
    pub remote_env: BTreeMap<String, Option<String>>,
    /// Variables of the container.
    pub container_env: BTreeMap<String, String>,
    /// Keep the container alive instead of running its own command.
    pub override_command: Option<bool>,
    #[serde(rename = "updateRemoteUserUID")]
    /// Give the remote user the ids of the workspace's owner.
    pub update_remote_user_uid: Option<bool>,
}

/// The shell that reports the remote user's environment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UserEnvProbe {
    /// No shell: the container's environment is used as it is.
    None,
    /// A login shell.
    LoginShell,
    /// A shell that is both login and interactive; the default.
    #[default]
    LoginInteractiveShell,
    /// An interactive shell.
    InteractiveShell,
}

impl Metadata {
    /// The command of a stage inside the container.
    pub fn command(&self, stage: Stage) -> Option<&Command> {
        match stage {
            Stage::InitializeCommand => None,
            Stage::OnCreateCommand => self.on_create_command.as_ref(),
            Stage::UpdateContentCommand => self.update_content_command.as_ref(),
            Stage::PostCreateCommand => self.post_create_command.as_ref(),
            Stage::PostStartCommand => self.post_start_command.as_ref(),
            Stage::PostAttachCommand => self.post_attach_command.as_ref(),
        }
    }
}

/// The entries of an image's label: an array of objects, or one object. An unreadable label has no entries, as in the
/// reference implementation; the image still runs.
pub(crate) fn label_entries(label: Option<&str>) -> Vec<Value> {
    match label.and_then(|label| serde_json::from_str(label).ok()) {
        Some(Value::Array(entries)) => entries,
        Some(entry @ Value::Object(_)) => vec![entry],
        _ => Vec::new(),
    }
}

/// One entry, typed, after its variables have been replaced.
pub(crate) fn typed_entry(index: usize, entry: &Value) -> Result<Metadata, Error> {
    serde_path_to_error::deserialize(entry).map_err(|error| {
        let message = format!("{}: {}", error.path(), error.inner());
        Error::Metadata { entry: index, message }
    })
}
