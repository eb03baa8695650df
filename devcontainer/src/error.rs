//! Errors, each with the file and the place in it.

use std::fmt;

/// A place in a text: both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Why a devcontainer.json cannot be used. Each message is one line with the place and the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The workspace has none.
    #[error(
        "no devcontainer.json in the workspace: create .devcontainer/devcontainer.json, .devcontainer.json or devcontainer.json"
    )]
    NotFound,
    /// There are several below `.devcontainer/`, and none was chosen.
    #[error("the workspace has several devcontainer.json: choose one of {}", .0.join(", "))]
    Several(Vec<String>),
    /// The chosen one does not exist, or is not a relative path inside the workspace.
    #[error("{0}: no such file in the workspace")]
    NoSuchFile(String),
    /// It is not JSON with comments.
    #[error("{file}:{place}: {message}")]
    Syntax {
        /// The file as the caller named it.
        file: String,
        /// The place in the file.
        place: Place,
        /// The reason.
        message: String,
    },
    /// A property has an invalid value.
    #[error("{file}:{place}: {property}: {message}")]
    Property {
        /// The file as the caller named it.
        file: String,
        /// The place in the file.
        place: Place,
        /// The property's path, such as `build.args.VERSION` or `mounts[1]`.
        property: String,
        /// The reason.
        message: String,
    },
    /// A property of the specification that this version does not support.
    #[error("{file}:{place}: {property} is not supported yet: {instead}")]
    Unsupported {
        /// The file as the caller named it.
        file: String,
        /// The place in the file.
        place: Place,
        /// The property.
        property: String,
        /// The alternative for the user.
        instead: String,
    },
    /// Neither an image nor a Dockerfile is named.
    #[error("{file}: neither \"image\" nor \"build\" is set: set one of them")]
    NoSource {
        /// The file as the caller named it.
        file: String,
    },
    /// A variable lacks the name of an environment variable.
    #[error("{file}: ${{{variable}}} names no environment variable: write ${{{variable}:NAME}}")]
    NoVariableName {
        /// The file as the caller named it.
        file: String,
        /// The variable, such as `localEnv`.
        variable: String,
    },
    /// The image's metadata label has an invalid value.
    #[error("image label devcontainer.metadata: entry {entry}: {message}")]
    Metadata {
        /// The index of the entry, from 0.
        entry: usize,
        /// The reason.
        message: String,
    },
}
