//! What the engine prints about containers and images, as far as the agent uses it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

/// One line of `podman ps`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Listed {
    pub id: String,
    /// In seconds since 1970.
    #[serde(default)]
    pub created: u64,
}

/// The fields of a container that the agent uses.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Container {
    /// Its image's id.
    pub image: String,
    /// The container's mounts.
    pub mounts: Vec<ContainerMount>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ContainerMount {
    /// For example `bind` or `volume`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// A volume's name.
    pub name: String,
    /// In the guest.
    pub source: String,
}

/// The fields of an image that the agent uses.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Image {
    /// Its id, 64 hexadecimal digits.
    pub id: String,
    /// The settings of containers that are made from it.
    pub config: Config,
    /// The location of its files.
    pub graph_driver: GraphDriver,
}

/// The location of an image's layers.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct GraphDriver {
    /// Folders by their role in the overlay.
    pub data: Option<Layers>,
}

/// The folders of an overlay.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Layers {
    /// The topmost layer.
    pub upper_dir: Option<String>,
    /// The layers below it, topmost first, separated by colons.
    pub lower_dir: Option<String>,
}

impl Image {
    /// The folders of its layers, topmost first.
    pub(super) fn layers(&self) -> Vec<&Path> {
        let Some(layers) = &self.graph_driver.data else { return Vec::new() };
        let lower = layers.lower_dir.iter().flat_map(|dirs| dirs.split(':'));
        layers.upper_dir.as_deref().into_iter().chain(lower).map(Path::new).collect()
    }
}

/// The settings of containers made from an image. Absent lists are `null` in podman's output.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Config {
    /// `user[:group]`; empty: root.
    pub user: String,
    pub labels: Option<BTreeMap<String, String>>,
    /// The program that runs before the command.
    pub entrypoint: Option<OneOrMany>,
    pub cmd: Option<Vec<String>>,
}

/// Older versions of podman print a container's entrypoint as one string.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    /// One string.
    One(String),
    /// A list.
    Many(Vec<String>),
}

impl Config {
    /// A label's value.
    pub(super) fn label(&self, name: &str) -> Option<&str> {
        self.labels.as_ref()?.get(name).map(String::as_str)
    }

    /// The command of the image itself: entrypoint and command.
    pub(super) fn own_command(&self) -> Vec<String> {
        let entrypoint = match &self.entrypoint {
            None => Vec::new(),
            Some(OneOrMany::One(one)) => vec![one.clone()],
            Some(OneOrMany::Many(many)) => many.clone(),
        };
        entrypoint.into_iter().chain(self.cmd.iter().flatten().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_podman() {
        let image: Vec<Image> = serde_json::from_str(
            r#"[{"Id": "ab", "Config": {"Cmd": ["bash"], "Entrypoint": ["/e"], "Labels": null}, "Size": 5,
                "GraphDriver": {"Name": "overlay", "Data": {"LowerDir": "/b:/c", "UpperDir": "/a"}}}]"#,
        )
        .unwrap();
        let config = &image[0].config;
        assert_eq!((config.user.as_str(), image[0].layers()), ("", ["/a", "/b", "/c"].map(Path::new).to_vec()));
        assert_eq!((config.label("x"), config.own_command()), (None, vec!["/e".to_owned(), "bash".into()]));
    }
}
