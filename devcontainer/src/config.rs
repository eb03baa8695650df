//! The properties of a devcontainer.json, typed.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use crate::{Command, Error, Metadata};

/// One devcontainer.json.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Properties that only the file can have.
    pub own: Own,
    /// Properties that an image's label can have as well.
    pub metadata: Metadata,
}

/// The properties that are not merged with an image's metadata.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Own {
    /// A name for people.
    pub name: Option<String>,
    /// The image to run.
    pub image: Option<String>,
    /// The image to build.
    pub build: Option<Build>,
    /// The older form of `build.dockerfile`.
    pub docker_file: Option<String>,
    /// The older form of `build.context`.
    pub context: Option<String>,
    /// The working folder in the container.
    pub workspace_folder: Option<String>,
    /// The workspace's mount, in the form of `--mount`; empty: the workspace is not mounted.
    pub workspace_mount: Option<String>,
    /// More arguments for the engine's `run`.
    pub run_args: Vec<String>,
    /// See [`Stage`](crate::Stage).
    pub initialize_command: Option<Command>,
}

/// How to build the image. Paths are relative to the folder of the devcontainer.json.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Build {
    /// The Dockerfile.
    pub dockerfile: Option<String>,
    /// The build context.
    pub context: Option<String>,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// The stage to build; absent: the last.
    pub target: Option<String>,
    /// Images whose layers may be used as a cache.
    #[serde(deserialize_with = "one_or_many")]
    pub cache_from: Vec<String>,
    /// More arguments for the engine's `build`.
    pub options: Vec<String>,
}

/// The source of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// This image.
    Image(String),
    /// An image built from this Dockerfile (and context), both relative to the folder of the devcontainer.json.
    Dockerfile {
        /// The Dockerfile.
        dockerfile: String,
        /// The context; `.` unless given.
        context: String,
        /// The other build properties.
        build: Build,
    },
}

impl Config {
    /// The source of the container; a Dockerfile wins over an image, as in the reference implementation.
    ///
    /// # Errors
    /// Neither is named. The error names the devcontainer.json as `file`.
    pub fn source(&self, file: &str) -> Result<Source, Error> {
        let own = &self.own;
        let build = own.build.clone().unwrap_or_default();
        let older = own.docker_file.is_some();
        if let Some(dockerfile) = own.docker_file.clone().or_else(|| build.dockerfile.clone()) {
            let context = if older { own.context.clone() } else { build.context.clone() };
            return Ok(Source::Dockerfile { dockerfile, context: context.unwrap_or_else(|| ".".into()), build });
        }
        match &own.image {
            Some(image) if !image.trim().is_empty() => Ok(Source::Image(image.clone())),
            _ => Err(Error::NoSource { file: file.to_owned() }),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    })
}

#[cfg(test)]
mod tests {
    use crate::{Document, Source};

    fn source(text: &str) -> Result<Source, String> {
        let config = Document::parse("d", text.as_bytes()).unwrap().config().unwrap();
        config.source("d").map_err(|error| error.to_string())
    }

    #[test]
    fn image_or_dockerfile_old_and_new() {
        assert_eq!(source(r#"{"image": "debian:12"}"#).unwrap(), Source::Image("debian:12".into()));
        for (text, expected) in [
            (r#"{"build": {"dockerfile": "D"}}"#, ("D", ".")),
            (r#"{"build": {"dockerfile": "D", "context": ".."}, "image": "x"}"#, ("D", "..")),
            (r#"{"dockerFile": "D", "context": "c"}"#, ("D", "c")),
        ] {
            let Source::Dockerfile { dockerfile, context, .. } = source(text).unwrap() else { panic!("{text}") };
            assert_eq!((dockerfile.as_str(), context.as_str()), expected);
        }
        for text in ["{}", r#"{"image": " "}"#, r#"{"build": {"context": "."}}"#] {
            assert!(source(text).unwrap_err().starts_with("d: neither \"image\" nor \"build\" is set"), "{text}");
        }
    }

    #[test]
    fn cache_from_is_one_or_many() {
        for cache in [r#""a""#, r#"["a"]"#] {
            let text = format!(r#"{{"build": {{"dockerfile": "D", "cacheFrom": {cache}}}}}"#);
            let Source::Dockerfile { build, .. } = source(&text).unwrap() else { panic!("{text}") };
            assert_eq!(build.cache_from, ["a"]);
        }
    }
}
