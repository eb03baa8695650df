//! A developer's workspace, and `garret` commands in it.

use super::{Developer, Ran};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The image of most tests. Without the internet, the host's registry mirror serves it.
pub const IMAGE: &str = "mcr.microsoft.com/devcontainers/base:debian";

/// A workspace folder of a developer.
pub struct Workspace {
    developer: Developer,
    path: PathBuf,
    /// The folder, which is removed at the end with the environment; `None`: both stay.
    folder: Option<tempfile::TempDir>,
}

impl Workspace {
    /// Creates an empty folder named `name`.
    pub fn new(developer: Developer, name: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("garret-e2e-").tempdir_in("/var/tmp").expect("a folder");
        let path = folder.path().join(name);
        fs::create_dir(&path).expect("a folder");
        for path in [folder.path(), &path] {
            developer.own(path);
        }
        Self { developer, path, folder: Some(folder) }
    }

    /// A workspace that all tests of a developer share: [`IMAGE`] and no other property. Its container keeps running
    /// between tests, so a test must leave the container unchanged. The folder is empty otherwise.
    pub fn shared(developer: Developer) -> Self {
        let folder = PathBuf::from(format!("/var/tmp/garret-e2e-{}", developer.name));
        let path = folder.join("shared");
        fs::create_dir_all(&path).expect("a folder");
        for entry in fs::read_dir(&path).expect("a folder") {
            let path = entry.expect("a name").path();
            if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
                .expect("it is removed");
        }
        for path in [&folder, &path] {
            developer.own(path);
        }
        let workspace = Self { developer, path, folder: None };
        workspace.write(".devcontainer/devcontainer.json", &config_of_image(""));
        workspace
    }

    /// Creates a folder with this text as its `.devcontainer/devcontainer.json`.
    pub fn with_config(developer: Developer, name: &str, config: &str) -> Self {
        let workspace = Self::new(developer, name);
        workspace.write(".devcontainer/devcontainer.json", config);
        workspace
    }

    /// Creates a folder whose devcontainer is [`IMAGE`] with these properties, each with a comma before it. It does not
    /// read the user's environment: under emulation the login shell takes seconds.
    pub fn with_image(developer: Developer, name: &str, properties: &str) -> Self {
        Self::with_config(developer, name, &config_of_image(properties))
    }

    /// Writes a file as the developer's.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.path.join(name);
        let parent = path.parent().expect("it has one");
        if !parent.exists() {
            fs::create_dir_all(parent).expect("a folder");
            self.developer.own(parent);
        }
        fs::write(&path, text).expect("it writes");
        self.developer.own(&path);
    }

    /// Reads a file.
    #[track_caller]
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn developer(&self) -> Developer {
        self.developer
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn str(&self) -> &str {
        self.path.to_str().expect("UTF-8")
    }

    /// Runs `garret up` in this folder, with a command if `words` has any.
    pub fn up(&self, command: &[&str]) -> Ran {
        let mut arguments = vec!["up", self.str()];
        if !command.is_empty() {
            arguments.push("--");
            arguments.extend(command);
        }
        self.developer.garret(&arguments)
    }

    /// Runs `garret exec` in this folder's environment.
    pub fn exec(&self, command: &[&str]) -> Ran {
        self.developer.garret(&[&["exec", self.str(), "--"], command].concat())
    }

    /// Runs a shell command in this folder's environment.
    pub fn sh(&self, line: &str) -> Ran {
        self.exec(&["sh", "-c", line])
    }

    /// The environment, as the API returns it.
    #[track_caller]
    pub fn environment(&self) -> serde_json::Value {
        self.developer.json(&["show", self.str()])
    }

    /// The address of the developer's machine on the host.
    pub fn machine_address(&self) -> String {
        let namespace = format!("garret-{}", self.developer.machine_id());
        let list = ["-n", &namespace, "-4", "-o", "addr", "show", "dev", "uplink"];
        let out = Command::new("ip").args(list).output().expect("ip runs").stdout;
        let out = String::from_utf8(out).expect("text");
        out.split_whitespace().nth(3).and_then(|field| field.split('/').next()).expect("an address").to_owned()
    }
}

fn config_of_image(properties: &str) -> String {
    let properties = if properties.is_empty() { r#", "userEnvProbe": "none""# } else { properties };
    format!("{{ \"image\": \"{IMAGE}\"{properties} }}")
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if self.folder.is_some() {
            // A failed test may have left no environment. Its own message counts.
            let _ = self.developer.garret(&["rm", self.str()]);
        }
    }
}
