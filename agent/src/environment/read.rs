//! Reads the devcontainer.json of a workspace.

use std::path::{Path, PathBuf};
use std::time::Duration;

use garret_api::agent::EnvironmentSpec;
use garret_api::{Code, Problem};
use garret_devcontainer::{Document, Folder, Resolved, Workspace, find, resolve};

use super::journal::Output;
use super::run::Run;
use crate::blocking::Blocking;

/// Reading the workspace: its files are on another machine, possibly on a network file system of that machine.
pub(super) static WORKSPACE: Blocking = Blocking::new("reading the workspace", 16, Duration::from_secs(60));

/// A devcontainer.json that has been read.
pub(super) struct Read {
    pub resolved: Resolved,
    /// Its text, kept to detect a later change.
    pub text: String,
    /// Its folder in the guest.
    pub folder: PathBuf,
}

/// Reads the workspace's devcontainer.json. Warnings about it go to `output`.
pub(super) async fn read(run: &Run, output: &Output) -> Result<Read, Problem> {
    let (workspace, spec) = (run.workspace(), run.spec.clone());
    let read = WORKSPACE.run(move || load(&workspace, spec)).await??;
    for notice in &read.resolved.notices {
        output.line(&format!("warning: {}", notice.0));
    }
    let changed = run.entry.with(|record| record.config.as_ref().is_some_and(|config| *config != read.text));
    if changed && !run.spec.rebuild {
        output.line("warning: devcontainer.json has changed: its changes to the container take effect with --rebuild");
    }
    Ok(read)
}

fn load(workspace: &Path, spec: EnvironmentSpec) -> Result<Read, Problem> {
    let invalid = |message: String| Problem::new(Code::Invalid, message);
    if !workspace.is_dir() {
        return Err(invalid(format!("the workspace {} is not a folder of this machine", spec.host_path)));
    }
    let at = |error: garret_devcontainer::Error| invalid(format!("{}: {error}", spec.host_path));
    let files = Folder(workspace);
    let config_file = find(&files, spec.config.as_deref()).map_err(at)?;
    let bytes = files.read(&config_file).map_err(|error| invalid(format!("{config_file} cannot be read: {error}")))?;
    let document = Document::parse(&config_file, &bytes).map_err(|error| invalid(error.to_string()))?;
    let folder = workspace.join(&config_file).parent().unwrap_or(workspace).to_owned();
    let resolved =
        resolve(&document, Workspace { local_folder: spec.host_path.clone(), config_file, local_env: spec.local_env });
    let resolved = resolved.map_err(|error| invalid(error.to_string()))?;
    Ok(Read { resolved, text: String::from_utf8_lossy(&bytes).into_owned(), folder })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(host_path: &str) -> EnvironmentSpec {
        EnvironmentSpec {
            share: "s".into(),
            host_path: host_path.into(),
            config: None,
            local_env: Default::default(),
            rebuild: false,
            generation: 0,
        }
    }

    fn error(workspace: &Path) -> String {
        load(workspace, spec("/home/ann/p")).err().expect("it fails").detail
    }

    #[test]
    fn what_is_wrong_with_a_workspace_is_one_line() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(error(&folder.path().join("x")), "the workspace /home/ann/p is not a folder of this machine");
        assert!(error(folder.path()).starts_with("/home/ann/p: no devcontainer.json in the workspace"));
        std::fs::write(folder.path().join("devcontainer.json"), "{\n \"image\" 5}").unwrap();
        assert!(error(folder.path()).starts_with("devcontainer.json:2:"), "{}", error(folder.path()));
        std::fs::write(folder.path().join("devcontainer.json"), vec![b' '; 1 << 21]).unwrap();
        assert!(error(folder.path()).contains("larger than 1048576 bytes"), "{}", error(folder.path()));
        for name in ["a", "b"] {
            let folder = folder.path().join(".devcontainer").join(name);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("devcontainer.json"), r#"{"image": "x"}"#).unwrap();
        }
        std::fs::remove_file(folder.path().join("devcontainer.json")).unwrap();
        assert!(error(folder.path()).contains("several devcontainer.json"));
        let chosen = EnvironmentSpec { config: Some("a".into()), ..spec("/home/ann/p") };
        let read = load(folder.path(), chosen).expect("the chosen one is read");
        assert_eq!(read.folder, folder.path().join(".devcontainer/a"));
    }
}
