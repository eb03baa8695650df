//! Resolves a file for its workspace: replaces variables and fills in defaults.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::merge::merge;
use crate::metadata::{label_entries, typed_entry};
use crate::{Config, Document, Error, Merged, Notice, Variables, devcontainer_id, substitute};

/// The label for the path of a container's workspace.
pub const LOCAL_FOLDER_LABEL: &str = "devcontainer.local_folder";
/// The label for the path of a container's devcontainer.json.
pub const CONFIG_FILE_LABEL: &str = "devcontainer.config_file";

/// The workspace that a file is resolved for.
#[derive(Clone, Debug)]
pub struct Workspace {
    /// The workspace's absolute path, as the developer sees it.
    pub local_folder: String,
    /// The devcontainer.json's path relative to it.
    pub config_file: String,
    /// The developer's environment.
    pub local_env: BTreeMap<String, String>,
}

/// A resolved devcontainer.json; only its image's metadata is missing.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The properties, with their variables replaced except `${containerEnv:…}`.
    pub config: Config,
    /// The properties that have no effect yet.
    pub notices: Vec<Notice>,
    /// The workspace's path in the container.
    pub workspace_folder: String,
    /// The workspace's mount, in the form of `--mount`; absent: the workspace is not mounted.
    pub workspace_mount: Option<String>,
    /// `${devcontainerId}`.
    pub id: String,
    /// The labels that identify the container.
    pub labels: BTreeMap<String, String>,
    file: String,
    workspace: Workspace,
}

/// Replaces the variables of `document` and fills in the workspace's folder and mount.
///
/// # Errors
/// A property is invalid; the message is one line with its place.
pub fn resolve(document: &Document, workspace: Workspace) -> Result<Resolved, Error> {
    // Check the types first: the places of their errors are those of the text as written.
    let written = document.config()?;
    let notices = document.notices()?;
    let local = workspace.local_folder.trim_end_matches('/').to_owned();
    let labels = BTreeMap::from([
        (LOCAL_FOLDER_LABEL.to_owned(), local.clone()),
        (CONFIG_FILE_LABEL.to_owned(), format!("{local}/{}", workspace.config_file)),
    ]);
    let default_target = format!("/workspaces/{}", local.rsplit_once('/').map_or(local.as_str(), |(_, name)| name));
    let mut resolved = Resolved {
        config: written,
        notices,
        workspace_folder: default_target.clone(),
        workspace_mount: None,
        id: devcontainer_id(&labels),
        labels,
        file: document.file().to_owned(),
        workspace: Workspace { local_folder: local, ..workspace },
    };
    if let Some(folder) = resolved.config.own.workspace_folder.clone().filter(|folder| !folder.is_empty()) {
        // The workspace folder may use every variable except its own.
        resolved.workspace_folder =
            Variables { container_workspace_folder: None, ..resolved.variables() }.replace(&folder)?;
    }
    resolved.config = document.config_of(&substitute(document.value(), &resolved.variables())?)?;
    resolved.workspace_mount = match resolved.config.own.workspace_mount.clone() {
        Some(mount) => Some(mount).filter(|mount| !mount.is_empty()),
        None => Some(default_mount(&resolved.workspace.local_folder, &default_target)),
    };
    Ok(resolved)
}

fn default_mount(source: &str, target: &str) -> String {
    crate::Mount {
        kind: "bind".into(),
        source: Some(source.to_owned()),
        target: target.to_owned(),
        options: Vec::new(),
    }
    .to_argument()
}

impl Resolved {
    /// Merges with the image's [`METADATA_LABEL`](crate::METADATA_LABEL), whose variables are replaced like the file's.
    ///
    /// # Errors
    /// An entry of the label has a property of the wrong type.
    pub fn merge(&self, label: Option<&str>) -> Result<Merged, Error> {
        let entry = |(index, entry): (usize, &Value)| typed_entry(index, &substitute(entry, &self.variables())?);
        let mut sources: Vec<_> = label_entries(label).iter().enumerate().map(entry).collect::<Result<_, _>>()?;
        sources.push(self.config.metadata.clone());
        Ok(merge(&sources))
    }

    /// The file's name in errors.
    pub fn file(&self) -> &str {
        &self.file
    }

    fn variables(&self) -> Variables<'_> {
        Variables {
            file: &self.file,
            local_env: Some(&self.workspace.local_env),
            local_workspace_folder: Some(&self.workspace.local_folder),
            container_workspace_folder: Some(&self.workspace_folder),
            devcontainer_id: Some(&self.id),
            container_env: None,
        }
    }
}

#[cfg(test)]
mod tests;
