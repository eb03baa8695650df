//! What a devcontainer.json asks for is what the container has.

use garret_integration::stage::{ALICE, IMAGE, Workspace};

#[test]
fn the_example_job_prints_output_and_returns_its_files() {
    let workspace = Workspace::with_image(ALICE, "job", "");
    let ran = workspace.up(&["sh", "-c", "echo made > made; id -un; echo last words; exit 3"]);
    assert_eq!(ran.status, 3, "{}", ran.stderr);
    assert_eq!(ran.out(), "vscode\nlast words\n");
    assert_eq!(workspace.read("made"), "made\n");
}

#[test]
fn config_is_found_in_every_place_and_odd_folder_name() {
    let config = format!("{{ // a comment\n \"image\": \"{IMAGE}\", }}");
    for (name, file) in [
        ("mit Leerzeichen und Ümläuten 雪", ".devcontainer/devcontainer.json"),
        ("dotfile", ".devcontainer.json"),
        ("plain", "devcontainer.json"),
    ] {
        let workspace = Workspace::new(ALICE, name);
        workspace.write(file, &config);
        let out = workspace.up(&["sh", "-c", "basename \"$PWD\"; echo x > 'new file'"]).ok();
        assert_eq!(out, format!("{name}\n"));
        assert_eq!(workspace.read("new file"), "x\n");
    }
}

#[test]
fn lifecycle_commands_run_in_order_in_every_form_and_not_twice() {
    let workspace = Workspace::with_image(
        ALICE,
        "lifecycle",
        r#",
        "initializeCommand": "echo initialize >> order",
        "onCreateCommand": ["sh", "-c", "echo onCreate >> order"],
        "updateContentCommand": {"only": "echo updateContent >> order"},
        "postCreateCommand": {"a": ["sh", "-c", "echo a > parallel-a"], "b": "echo b > parallel-b"},
        "postStartCommand": "echo postStart >> order; whoami >> order",
        "postAttachCommand": "echo postAttach >> order""#,
    );
    let first = workspace.up(&["true"]);
    assert!(first.stderr.contains("onCreateCommand"), "steps are named: {}", first.stderr);
    first.ok();
    let once = "initialize\nonCreate\nupdateContent\npostStart\nvscode\npostAttach\n";
    assert_eq!(workspace.read("order"), once);
    assert_eq!((workspace.read("parallel-a"), workspace.read("parallel-b")), ("a\n".into(), "b\n".into()));

    workspace.up(&["true"]).ok();
    let again = workspace.read("order");
    for step in ["onCreate", "updateContent"] {
        assert_eq!(again.matches(step).count(), 1, "{step} ran twice: {again}");
    }
    // The container ran on: postStart is for starts.
    assert_eq!(again.matches("postStart").count(), 1, "{again}");

    ALICE.garret(&["stop", workspace.str()]).ok();
    ALICE.garret(&["start", workspace.str()]).ok();
    workspace.up(&["true"]).ok();
    let restarted = workspace.read("order");
    assert_eq!(restarted.matches("postStart").count(), 2, "{restarted}");
    assert_eq!(restarted.matches("onCreate").count(), 1, "{restarted}");
}

#[test]
fn variables_users_mounts_and_capabilities_are_as_asked() {
    let workspace = Workspace::with_image(
        ALICE,
        "properties",
        r#",
        "workspaceFolder": "/code/${localWorkspaceFolderBasename}",
        "workspaceMount": "source=${localWorkspaceFolder},target=/code/${localWorkspaceFolderBasename},type=bind",
        "mounts": ["source=cache-${devcontainerId},target=/cache,type=volume", {"type": "tmpfs", "target": "/scratch"}],
        "containerEnv": {"IN_CONTAINER": "yes", "FROM_HOST": "${localEnv:GARRET_E2E:absent}", "LINES": "one\ntwo",
            "CREDENTIAL": "${localEnv:GARRET_E2E_TOKEN}"},
        "remoteEnv": {"REMOTE": "${containerEnv:IN_CONTAINER}-${containerWorkspaceFolderBasename}"},
        "remoteUser": "root",
        "containerUser": "root",
        "init": true,
        "capAdd": ["SYS_PTRACE"],
        "securityOpt": ["seccomp=unconfined"],
        "runArgs": ["--hostname", "chosen"],
        "overrideCommand": true"#,
    );
    let variables = [("GARRET_E2E", "from alice"), ("GARRET_E2E_TOKEN", "secret")];
    let up = |more: &[&str]| ALICE.garret_with(&[&["up", workspace.str()], more].concat(), &variables, b"");
    // A credential takes one consent for its workspace.
    up(&[]).fails_with(&["GARRET_E2E_TOKEN", "--allow-env GARRET_E2E_TOKEN"]);
    up(&["--allow-env", "GARRET_E2E_TOKEN"]).ok();
    up(&[]).ok();
    assert_eq!(workspace.sh("echo $CREDENTIAL").ok(), "secret\n");
    let line = "id -un; pwd; echo $IN_CONTAINER; echo $FROM_HOST; echo $REMOTE; hostname; \
                findmnt -no FSTYPE /scratch; findmnt -n /cache >/dev/null && echo cache; \
                cat /proc/1/comm; grep CapEff /proc/1/status";
    let out = workspace.sh(line).ok();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        lines[..8],
        ["root", "/code/properties", "yes", "from alice", "yes-properties", "chosen", "tmpfs", "cache"],
        "{out}"
    );
    assert!(lines[8].contains("init"), "{out}");
    assert_eq!(workspace.sh("printf %s \"$LINES\"").ok(), "one\ntwo");
    // No other user of the guest can read the files that hold them.
    let modes = "cd /data/garret/environments && stat -c %a . *.json | sort -u";
    assert_eq!(ALICE.guest(modes).ok(), "600\n700\n");
    let capabilities = u64::from_str_radix(lines[9].split_whitespace().last().unwrap(), 16).unwrap();
    assert_ne!(capabilities & (1 << 19), 0, "CAP_SYS_PTRACE is missing: {out}");
    let kept = || ALICE.garret(&["env", "ls", workspace.str()]).ok();
    assert_eq!(kept(), "GARRET_E2E\nGARRET_E2E_TOKEN\n");
    ALICE.garret(&["env", "clear", workspace.str()]).ok();
    assert_eq!(kept(), "");
    up(&[]).fails_with(&["GARRET_E2E_TOKEN"]);
}

#[test]
fn a_dockerfile_is_built_with_its_arguments_and_target() {
    let workspace = Workspace::with_config(
        ALICE,
        "dockerfile",
        r#"{ "build": { "dockerfile": "Dockerfile", "context": "..", "args": {"WHO": "${localEnv:USER}"}, "target": "dev" } }"#,
    );
    workspace.write("data.txt", "from the context\n");
    workspace.write(
        ".devcontainer/Dockerfile",
        &format!(
            "FROM {IMAGE} AS dev\nARG WHO\nCOPY data.txt /data.txt\nRUN echo $WHO > /who && getent hosts localhost\n\
             FROM dev AS other\nRUN false\n"
        ),
    );
    assert_eq!(workspace.up(&["cat", "/who", "/data.txt"]).ok(), "alice\nfrom the context\n");
}

#[test]
fn a_rebuild_or_another_config_during_a_run_replaces_it() {
    let hangs = |mark: &str| format!(r#"{{ "image": "{IMAGE}", "onCreateCommand": "echo > {mark}; sleep 1000" }}"#);
    let workspace = Workspace::with_config(ALICE, "replaced", &hangs("first"));
    for (mark, order) in [("first", ""), ("second", "--rebuild")] {
        workspace.write(".devcontainer/devcontainer.json", &hangs(mark));
        let line = format!(
            "garret up {order} '{0}' & client=$!; until [ -e '{0}/{mark}' ]; do sleep 0.1; done; kill -TERM $client; wait $client",
            workspace.str()
        );
        ALICE.run("sh", &["-c", &line], &[], b"");
    }
    let ends = format!("{{ \"image\": \"{IMAGE}\", \"onCreateCommand\": \"echo new > made\" }}");
    workspace.write(".devcontainer/other/devcontainer.json", &ends);
    ALICE.garret(&["up", "--config", "other", workspace.str()]).ok();
    assert_eq!(workspace.read("made"), "new\n");
}
