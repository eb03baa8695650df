//! Every case is also passed to the reference implementation, and both must return the same.
//!
//! The reference is an npm package of one pinned version, installed once into the cache folder; node and npm come with
//! the project's setup script. It runs against a stand-in for the engine's command that answers `inspect` with the
//! case's image.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use garret_devcontainer::{Document, Folder, Resolved, Workspace, find, resolve};
use garret_testing::{npm, program};
use serde_json::{Value, json};

const VERSION: &str = "0.89.0";

/// One workspace: files by path, and the image's label and user.
struct Case {
    name: &'static str,
    config: &'static str,
    files: &'static [(&'static str, &'static str)],
    label: Option<&'static str>,
}

const fn case(name: &'static str, config: &'static str) -> Case {
    Case { name, config, files: &[(".devcontainer/devcontainer.json", "")], label: None }
}

const CASES: &[Case] = &[
    case("minimal", r#"{"image": "debian:12"}"#),
    case(
        "comments and trailing commas",
        "// top\n{ /* x */ \"image\": \"debian:12\", // y\n \"runArgs\": [\"--init\",], }",
    ),
    case("the dot file", r#"{"image": "debian:12", "remoteEnv": {"I": "x"}}"#),
    case(
        "every variable",
        r#"{"image": "debian:12", "workspaceFolder": "/w/${localWorkspaceFolderBasename}",
            "containerEnv": {"A": "${localEnv:GARRET_TEST}", "B": "${env:GARRET_TEST:d}", "C": "${localEnv:GARRET_NONE:d:e}",
                "D": "${localEnv:GARRET_NONE}", "E": "${localEnv:GARRET_EMPTY:d}", "F": "${localWorkspaceFolder}/x",
                "G": "${containerWorkspaceFolder}", "H": "${containerWorkspaceFolderBasename}", "I": "${unknown:x}",
                "J": "${a\nb}", "K": "${a${localEnv:GARRET_TEST}}", "L": "$${localEnv:GARRET_TEST}$"},
            "remoteEnv": {"P": "${containerEnv:PATH}:/x", "Q": "${containerEnv:NONE:d}"},
            "mounts": ["type=bind,source=${localWorkspaceFolder}/a,target=/a"],
            "postCreateCommand": {"one": "echo ${containerWorkspaceFolder}", "two": ["a", "${localEnv:GARRET_TEST}"]},
            "runArgs": ["--label=x=${localEnv:GARRET_TEST}"]}"#,
    ),
    case(
        "the workspace somewhere else",
        r#"{"image": "debian:12", "workspaceFolder": "/src/${localWorkspaceFolderBasename}/sub",
            "workspaceMount": "source=${localWorkspaceFolder},target=/src/${localWorkspaceFolderBasename},type=bind"}"#,
    ),
    case("no workspace mount", r#"{"image": "debian:12", "workspaceFolder": "/", "workspaceMount": ""}"#),
    case("only a folder", r#"{"image": "debian:12", "workspaceFolder": "/elsewhere"}"#),
    case(
        "all that merges",
        r#"{"image": "debian:12", "init": true, "privileged": true, "capAdd": ["A", "B", "A"], "securityOpt": ["s=1"],
            "overrideCommand": false, "updateRemoteUserUID": false, "userEnvProbe": "none", "waitFor": "postCreateCommand",
            "remoteUser": "r", "containerUser": "c", "onCreateCommand": "a", "updateContentCommand": ["b"],
            "postCreateCommand": {"x": "c"}, "postStartCommand": "d", "postAttachCommand": "e", "initializeCommand": "i"}"#,
    ),
    Case {
        label: Some(
            r#"[{"id": "one", "init": true, "capAdd": ["X"], "securityOpt": ["s=0"], "onCreateCommand": "first",
                 "entrypoint": "/start-one", "mounts": ["source=v,target=/data,type=volume"]},
                {"id": "two", "capAdd": ["Y", "X"], "onCreateCommand": ["second"], "entrypoint": "/start-two",
                 "mounts": [{"type": "volume", "source": "w", "target": "/other"}], "postStartCommand": {"p": "q"}},
                {"remoteUser": "vscode", "containerUser": "vscode", "userEnvProbe": "loginShell", "waitFor": "onCreateCommand",
                 "remoteEnv": {"A": "image", "B": "${localEnv:GARRET_TEST}"}, "containerEnv": {"C": "image"},
                 "overrideCommand": true, "updateRemoteUserUID": true}]"#,
        ),
        ..case(
            "an image with metadata",
            r#"{"image": "debian:12", "capAdd": ["Z"], "onCreateCommand": "mine", "remoteEnv": {"A": "mine"},
                "mounts": ["type=bind,src=/x,dst=/data", "source=a,target=/b,type=volume"], "containerEnv": {"D": "mine"}}"#,
        )
    },
    Case {
        label: Some(r#"{"remoteUser": "single", "privileged": true}"#),
        ..case("metadata that is one object", r#"{"image": "debian:12", "remoteUser": "mine"}"#)
    },
    Case { label: Some("nonsense"), ..case("metadata that is no JSON", r#"{"image": "debian:12"}"#) },
    Case {
        label: Some(r#"[{"remoteUser": "built"}]"#),
        files: &[(".devcontainer/devcontainer.json", ""), ("docker/Dockerfile", "ARG V=1\nFROM debian:${V}\n")],
        ..case(
            "a build",
            r#"{"build": {"dockerfile": "../docker/Dockerfile", "context": "..", "args": {"V": "${localEnv:GARRET_TEST:2}"},
                "target": "", "cacheFrom": "x", "options": ["--pull"]}}"#,
        )
    },
    Case {
        files: &[(".devcontainer/devcontainer.json", ""), (".devcontainer/Dockerfile", "FROM debian:12\n")],
        ..case("the older form of a build", r#"{"dockerFile": "Dockerfile", "context": ".."}"#)
    },
];

/// The compared properties of the merged configuration: all that this library merges.
const MERGED: &[&str] = &[
    "init",
    "privileged",
    "capAdd",
    "securityOpt",
    "entrypoints",
    "mounts",
    "onCreateCommands",
    "updateContentCommands",
    "postCreateCommands",
    "postStartCommands",
    "postAttachCommands",
    "waitFor",
    "remoteUser",
    "containerUser",
    "userEnvProbe",
    "remoteEnv",
    "containerEnv",
    "overrideCommand",
    "updateRemoteUserUID",
];

#[test]
fn results_equal_those_of_the_reference() {
    let reference = Reference::install();
    for case in CASES {
        let folder = tempfile::tempdir().unwrap();
        let workspace = folder.path().join("My Wörkspace");
        write_files(&workspace, case);
        let theirs = reference.read_configuration(folder.path(), &workspace, case);
        let ours = ours(&workspace);
        compare(case, &ours, &theirs);
    }
}

#[test]
fn the_id_is_the_references() {
    // What the reference shows: its configuration with the id replaced is only in the merge with a container, so the id
    // is computed by its published algorithm, here in JavaScript.
    let labels = BTreeMap::from([
        ("devcontainer.local_folder".to_owned(), "/home/me/\"q\" ü\t\u{7f}".to_owned()),
        ("devcontainer.config_file".to_owned(), "/home/me/.devcontainer.json".to_owned()),
    ]);
    let script = "const l=JSON.parse(process.argv[1]);const h=require('crypto').createHash('sha256')\
        .update(Buffer.from(JSON.stringify(l,Object.keys(l).sort()),'utf-8')).digest('hex');\
        process.stdout.write(BigInt('0x'+h).toString(32).padStart(52,'0'))";
    let out =
        Command::new("node").args(["-e", script, &json!(labels).to_string()]).output().expect("node is installed");
    assert_eq!(garret_devcontainer::devcontainer_id(&labels), String::from_utf8(out.stdout).unwrap());
}

fn compare(case: &Case, ours: &Resolved, theirs: &Value) {
    let name = case.name;
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    assert_eq!(Some(ours.workspace_folder.clone()), text(&theirs["workspace"]["workspaceFolder"]), "{name}");
    assert_eq!(ours.workspace_mount, text(&theirs["workspace"]["workspaceMount"]), "{name}");
    let config = &theirs["configuration"];
    assert_eq!(json!(ours.config.own.run_args), config.get("runArgs").cloned().unwrap_or(json!([])), "{name}");
    assert_eq!(json!(ours.config.own.initialize_command), config["initializeCommand"], "{name}");
    if let Some(args) = config["build"].get("args") {
        assert_eq!(json!(ours.config.own.build.as_ref().unwrap().args), *args, "{name}");
    }
    let merged = json!(ours.merge(case.label).unwrap());
    for property in MERGED {
        let empty = |value: &Value| value.is_null() || *value == json!([]) || *value == json!({});
        let (mine, other) = (&merged[*property], &theirs["mergedConfiguration"][*property]);
        assert!(mine == other || empty(mine) && empty(other), "{name}: {property}: {mine} against {other}");
    }
}

fn ours(workspace: &Path) -> Resolved {
    let file = find(&Folder(workspace), None).unwrap();
    let text = std::fs::read(workspace.join(&file)).unwrap();
    let document = Document::parse(&file, &text).unwrap();
    let local_env = BTreeMap::from(ENV.map(|(name, value)| (name.to_owned(), value.to_owned())));
    resolve(&document, Workspace { local_folder: workspace.to_str().unwrap().into(), config_file: file, local_env })
        .unwrap()
}

const ENV: [(&str, &str); 2] = [("GARRET_TEST", "some value"), ("GARRET_EMPTY", "")];

fn write_files(workspace: &Path, case: &Case) {
    for (path, text) in case.files {
        let path = workspace.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, if text.is_empty() { case.config } else { text }).unwrap();
    }
}

/// The installed reference.
struct Reference(PathBuf);

impl Reference {
    fn install() -> Self {
        let folder = npm::install("devcontainers-cli", &[&format!("@devcontainers/cli@{VERSION}")]);
        let program = folder.join("node_modules/@devcontainers/cli/devcontainer.js");
        assert!(program.exists(), "the package has no {}", program.display());
        Self(program)
    }

    fn read_configuration(&self, folder: &Path, workspace: &Path, case: &Case) -> Value {
        let engine = folder.join("engine");
        program::write(&engine, ENGINE);
        let labels = case.label.map_or(json!({}), |label| json!({"devcontainer.metadata": label}));
        let image = json!([{"Id": "sha256:00", "Os": "linux", "Architecture": "amd64",
            "Config": {"User": "", "Env": ["PATH=/bin"], "Labels": labels}}]);
        std::fs::write(folder.join("image.json"), image.to_string()).unwrap();
        let out = Command::new("node")
            .arg(&self.0)
            .args(["read-configuration", "--include-merged-configuration", "--mount-workspace-git-root", "false"])
            .arg("--workspace-folder")
            .arg(workspace)
            .arg("--docker-path")
            .arg(&engine)
            .env("GARRET_TEST_IMAGE", folder.join("image.json"))
            .envs(ENV)
            .output()
            .expect("node is installed: run scripts/setup.sh");
        let shown = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{}: the reference failed: {shown}", case.name);
        serde_json::from_slice(&out.stdout).unwrap_or_else(|error| panic!("{}: {error}: {shown}", case.name))
    }
}

/// There is no container, and every image is the case's.
const ENGINE: &str = "#!/bin/sh\ncase \"$1\" in inspect) cat \"$GARRET_TEST_IMAGE\";; esac\n";
