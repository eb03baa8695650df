use super::*;

fn resolved(text: &str) -> Resolved {
    let document = Document::parse("d", text.as_bytes()).unwrap();
    let workspace = Workspace {
        local_folder: "/home/me/my, project".into(),
        config_file: ".devcontainer.json".into(),
        local_env: BTreeMap::from([("USER".into(), "me".into())]),
    };
    resolve(&document, workspace).unwrap()
}

#[test]
fn the_workspace_has_defaults() {
    let resolved = resolved(r#"{"image": "x"}"#);
    assert_eq!(resolved.workspace_folder, "/workspaces/my, project");
    let mount = crate::Mount::parse(resolved.workspace_mount.as_deref().unwrap()).unwrap();
    assert_eq!((mount.kind.as_str(), mount.target.as_str()), ("bind", "/workspaces/my, project"));
    assert_eq!(mount.source.as_deref(), Some("/home/me/my, project"));
    assert_eq!(resolved.labels[CONFIG_FILE_LABEL], "/home/me/my, project/.devcontainer.json");
}

#[test]
fn the_workspace_is_mounted_where_the_file_says() {
    let resolved = resolved(
        r#"{"image": "x", "workspaceFolder": "/src/${localWorkspaceFolderBasename}/a",
            "workspaceMount": "type=bind,source=${localWorkspaceFolder},target=${containerWorkspaceFolder}",
            "containerEnv": {"W": "${containerWorkspaceFolderBasename}", "I": "${devcontainerId}"}}"#,
    );
    assert_eq!(resolved.workspace_folder, "/src/my, project/a");
    let mount = resolved.workspace_mount.clone().unwrap();
    assert!(mount.ends_with("target=/src/my, project/a"), "{mount}");
    assert_eq!(resolved.config.metadata.container_env["W"], "a");
    assert_eq!(resolved.config.metadata.container_env["I"], resolved.id);
    assert_eq!(self::resolved(r#"{"image": "x", "workspaceMount": ""}"#).workspace_mount, None);
}

#[test]
fn the_file_wins_over_the_image_and_lists_grow() {
    let resolved = resolved(
        r#"{"image": "x", "remoteUser": "joe", "capAdd": ["B", "A"], "remoteEnv": {"X": "file", "N": null},
            "postCreateCommand": "file", "mounts": [{"type": "volume", "source": "mine", "target": "/m"}]}"#,
    );
    let label = r#"[{"id": "f", "privileged": true, "capAdd": ["A"], "onCreateCommand": "f", "postCreateCommand": ["f"]},
        {"remoteUser": "vscode", "containerUser": "u", "mounts": ["source=theirs,target=/m", "target=/n"],
         "remoteEnv": {"X": "image", "Y": "${localEnv:USER} ${containerEnv:HOME}"}, "userEnvProbe": "none"}]"#;
    let merged = resolved.merge(Some(label)).unwrap();
    assert!(merged.privileged && !merged.init);
    assert_eq!(merged.cap_add, ["A", "B"]);
    assert_eq!(merged.remote_user.as_deref(), Some("joe"));
    assert_eq!(merged.container_user.as_deref(), Some("u"));
    assert_eq!(merged.post_create_commands.len(), 2);
    let targets: Vec<_> = merged.mounts.iter().map(|entry| entry.mount().to_argument()).collect();
    assert_eq!(targets, ["type=volume,target=/n", "type=volume,source=mine,target=/m"]);
    let env = merged.remote_env_in("d", &BTreeMap::from([("HOME".into(), "/h".into())])).unwrap();
    assert_eq!(env["X"].as_deref(), Some("file"));
    assert_eq!(env["Y"].as_deref(), Some("me /h"));
    assert_eq!(env["N"], None);
}

#[test]
fn a_label_may_be_one_object_or_unreadable() {
    let resolved = resolved(r#"{"image": "x"}"#);
    assert_eq!(resolved.merge(Some(r#"{"remoteUser": "u"}"#)).unwrap().remote_user.as_deref(), Some("u"));
    assert_eq!(resolved.merge(Some("nonsense")).unwrap(), resolved.merge(None).unwrap());
    let error = resolved.merge(Some(r#"[{}, {"init": "yes"}]"#)).unwrap_err().to_string();
    assert!(error.starts_with("image label devcontainer.metadata: entry 1: init: "), "{error}");
}
