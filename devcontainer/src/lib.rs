//! `devcontainer.json`: find, parse, validate, substitute, merge. A pure library: it starts no program, and its caller
//! passes all facts from outside. Only [`Folder`], for callers that have the workspace on disk, reads files.
//!
//! The order of use is the order of the modules:
//!
//! 1. [`find()`] selects the file of a workspace;
//! 2. [`Document::parse`] parses its text and keeps the place of every value;
//!    [`Document::config`] returns its typed properties;
//! 3. [`resolve()`] replaces variables and fills in the defaults of the workspace;
//! 4. [`Resolved::merge`] merges it with the image's metadata label;
//! 5. [`Merged::remote_env_in`] replaces variables that need the running container's environment.
//!
//! The specification is that of containers.dev. Where it leaves something open, the reference implementation decides,
//! and `tests/oracle.rs` compares with it.

#![warn(missing_docs)]

mod config;
mod document;
mod error;
pub mod find;
mod folder;
mod id;
mod lifecycle;
mod merge;
mod metadata;
mod mount;
mod resolve;
mod substitute;
mod support;

pub use config::{Build, Config, Source};
pub use document::Document;
pub use error::{Error, Place};
pub use find::find;
pub use folder::Folder;
pub use id::devcontainer_id;
pub use lifecycle::{Command, Single, Stage};
pub use merge::Merged;
pub use metadata::{METADATA_LABEL, Metadata, UserEnvProbe};
pub use mount::{Mount, MountEntry};
pub use resolve::{CONFIG_FILE_LABEL, LOCAL_FOLDER_LABEL, Resolved, Workspace, resolve};
pub use substitute::{Variables, substitute};
pub use support::Notice;
