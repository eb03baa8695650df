//! Every user error is one clear line: what is wrong, where, what to do; and nothing is lost.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use garret_integration::stage::{ALICE, IMAGE, Workspace};

#[test]
fn a_folder_without_devcontainer_json_is_named() {
    let workspace = Workspace::new(ALICE, "empty");
    workspace.write("kept.txt", "kept");
    workspace.up(&["true"]).fails_with(&["devcontainer.json"]);
    assert_eq!(workspace.read("kept.txt"), "kept");
}

#[test]
fn invalid_json_is_reported_with_line_and_column() {
    let workspace = Workspace::with_config(ALICE, "invalid", "{\n  \"image\": \"x\"\n  \"name\": 1\n}");
    workspace.up(&["true"]).fails_with(&["devcontainer.json", "3:"]);
}

#[test]
fn an_unknown_image_is_named() {
    let workspace = Workspace::with_config(
        ALICE,
        "unknown-image",
        r#"{ "image": "mcr.microsoft.com/devcontainers/no-such-image:1" }"#,
    );
    workspace.up(&["true"]).fails_with(&["mcr.microsoft.com/devcontainers/no-such-image:1"]);
}

#[test]
fn a_failing_dockerfile_shows_its_output() {
    let workspace = Workspace::with_config(ALICE, "bad-build", r#"{ "build": { "dockerfile": "Dockerfile" } }"#);
    workspace.write(".devcontainer/Dockerfile", &format!("FROM {IMAGE}\nRUN echo the compiler says no && exit 42\n"));
    let ran = workspace.up(&["true"]).fails_with(&["build"]);
    assert!(ran.stderr.contains("the compiler says no"), "{}", ran.stderr);
}

#[test]
fn a_failing_lifecycle_command_is_named_and_ends_the_sequence() {
    let workspace = Workspace::with_image(
        ALICE,
        "bad-lifecycle",
        r#", "onCreateCommand": "echo this is printed; exit 5", "postCreateCommand": "touch too-far""#,
    );
    let ran = workspace.up(&["touch", "much-too-far"]).fails_with(&["onCreateCommand", "5"]);
    assert!(ran.stderr.contains("this is printed"), "{}", ran.stderr);
    assert!(!workspace.path().join("too-far").exists() && !workspace.path().join("much-too-far").exists());
    // Mended, it comes up, and what had not run runs now.
    workspace.write(
        ".devcontainer/devcontainer.json",
        &format!(
            r#"{{ "image": "{IMAGE}", "onCreateCommand": "touch mended", "postCreateCommand": "touch created" }}"#
        ),
    );
    workspace.up(&["true"]).ok();
    assert!(workspace.path().join("created").exists());
}

#[test]
fn a_missing_workspace_a_file_and_one_the_caller_may_not_enter() {
    ALICE.garret(&["up", "/no/such/folder"]).fails_with(&["/no/such/folder"]);
    ALICE.garret(&["up", "/etc/passwd"]).fails_with(&["/etc/passwd", "folder"]);
    let secret = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(secret.path(), fs::Permissions::from_mode(0o700)).unwrap();
    ALICE.garret(&["up", secret.path().to_str().unwrap()]).fails_with(&[secret.path().to_str().unwrap()]);
}

#[test]
fn a_property_that_is_not_supported_yet_is_named() {
    let workspace =
        Workspace::with_config(ALICE, "compose", r#"{ "dockerComposeFile": "compose.yml", "service": "app" }"#);
    workspace.up(&["true"]).fails_with(&["dockerComposeFile"]);
}

#[test]
fn two_ups_at_once_are_one_run() {
    let workspace = Workspace::with_image(
        ALICE,
        "twice",
        r#", "onCreateCommand": "echo ran >> ran; sleep 2", "postCreateCommand": "true""#,
    );
    let line =
        format!("garret up '{}' -- echo one & garret up '{0}' -- echo two & wait %1 && wait %2", workspace.str());
    let out = ALICE.run("bash", &["-c", &line], &[], b"").ok();
    assert!(out.contains("one") && out.contains("two"), "{out}");
    assert_eq!(workspace.read("ran"), "ran\n");
}

#[test]
fn unknown_api_fields_are_refused() {
    for (path, body) in [
        ("/v1/machines/alice", r#"{"desired":"running","turbo":true}"#),
        ("/v1/environments/x-00000000", r#"{"workspace":"/tmp","desired":"running","turbo":true}"#),
    ] {
        let output = Command::new("curl")
            .args([
                "-sS",
                "--unix-socket",
                "/run/garret/garret.sock",
                "-X",
                "PUT",
                "-H",
                "content-type: application/json",
            ])
            .args(["-d", body, "-w", "\n%{http_code}", &format!("http://garret{path}")])
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (answer, status) = text.rsplit_once('\n').unwrap();
        assert!(["400", "422"].contains(&status), "{text}");
        let problem: serde_json::Value = serde_json::from_str(answer).unwrap();
        assert!(problem["detail"].as_str().unwrap().contains("turbo"), "{text}");
    }
}

#[test]
fn a_command_without_a_daemon_names_the_socket() {
    ALICE
        .garret_with(&["ls"], &[("GARRET_SOCKET", "/run/garret/none.sock")], b"")
        .fails_with(&["/run/garret/none.sock", "daemon"]);
}
