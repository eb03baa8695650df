//! `devcontainer.json`: find, parse, validate, substitute, merge. A pure library: it runs nothing and asks its caller for
//! every fact of the outside. Only [`Folder`], for callers that have the workspace on disk, reads files.
//!
//! The order of use is the order of the modules:
//!
//! 1. [`find`]: which file of a workspace is meant;
//! 2. [`Document::parse`]: its text, with the place of every value; [`Document::config`]: its properties, typed;
//! 3. [`resolve`]: variables replaced, defaults of the workspace filled in;
//! 4. [`Resolved::merge`]: together with the image's metadata label;
//! 5. [`Merged::remote_env_in`]: what needs the running container's environment.
//!
//! The specification is the one of containers.dev; where it is silent, the reference implementation decides, and
//! `tests/oracle.rs` compares with it.

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
