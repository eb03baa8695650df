use garret_devcontainer::{Document, Workspace, resolve};

use super::*;
use crate::environment::inspect::OneOrMany;

const WORKSPACE_PATHS: WorkspacePaths<'_> = WorkspacePaths { host: "/home/ann/p", guest: "/workspaces/p-1" };

fn resolved(text: &str) -> Resolved {
    let document = Document::parse("d", text.as_bytes()).unwrap();
    let workspace = Workspace {
        local_folder: WORKSPACE_PATHS.host.into(),
        config_file: ".devcontainer.json".into(),
        local_env: BTreeMap::new(),
    };
    resolve(&document, workspace).unwrap()
}

fn image(label: Option<&str>) -> ImageRecord {
    ImageRecord { user: "app".into(), metadata: label.map(str::to_owned) }
}

fn config() -> Config {
    Config {
        user: "app".into(),
        entrypoint: Some(OneOrMany::Many(vec!["/entry".into()])),
        cmd: Some(vec!["serve".into()]),
        ..Config::default()
    }
}

fn run(text: &str, label: Option<&str>) -> Result<Vec<String>, Problem> {
    let (resolved, config) = (resolved(text), config());
    let merged = merge(&resolved, &image(label))?;
    run_args(&RunPlan {
        id: "p-1",
        workspace: WORKSPACE_PATHS,
        resolved: &resolved,
        merged: &merged,
        image: "img",
        config: &config,
        env_file: "/run/env",
    })
}

#[test]
fn a_plain_container_is_kept_alive() {
    let args = run(r#"{"image": "x"}"#, None).unwrap();
    assert_eq!(&args[..5], ["run", "--detach", "--pull=never", "--name", "garret-p-1"]);
    assert!(!args.contains(&"--replace".to_owned()), "a container that the record lost would be destroyed");
    for expected in [
        "--label=garret.environment=p-1",
        "--label=devcontainer.local_folder=/home/ann/p",
        "--label=devcontainer.config_file=/home/ann/p/.devcontainer.json",
        "--mount=type=bind,source=/workspaces/p-1,target=/workspaces/p",
    ] {
        assert!(args.contains(&expected.to_owned()), "{expected} is not in {args:?}");
    }
    let end = &args[args.len() - 6..];
    assert_eq!(&end[..4], ["--entrypoint", "/bin/sh", "img", "-c"]);
    assert!(end[4].starts_with("echo Container started\ntrap 'exit 0' TERM\nexec"), "{}", end[4]);
    assert_eq!(end[5], "-");
}

#[test]
fn everything_a_file_can_ask_for() {
    let args = run(
        r#"{"image": "x", "init": true, "privileged": true, "capAdd": ["SYS_PTRACE"], "securityOpt": ["seccomp=unconfined"],
            "containerEnv": {"A": "a b=c"}, "containerUser": "joe", "runArgs": ["--hostname", "box"],
            "mounts": ["source=cache,target=/c,type=volume"], "workspaceMount": "", "overrideCommand": false}"#,
        Some(r#"[{"entrypoint": "/start.sh", "capAdd": ["NET_ADMIN"]}]"#),
    )
    .unwrap();
    let from = args.iter().position(|arg| arg.starts_with("--mount")).unwrap();
    assert_eq!(
        &args[from..args.len() - 5],
        [
            "--mount=type=volume,source=cache,target=/c",
            "--env-file=/run/env",
            "--user=joe",
            "--hostname",
            "box",
            "--init",
            "--privileged",
            "--cap-add=NET_ADMIN",
            "--cap-add=SYS_PTRACE",
            "--security-opt=seccomp=unconfined",
            "--entrypoint",
            "/bin/sh",
            "img"
        ]
    );
    let end = &args[args.len() - 5..];
    assert!(end[1].contains("\n/start.sh\nexec \"$@\"\n"), "{}", end[1]);
    assert_eq!(&end[2..], ["-", "/entry", "serve"]);
}

#[test]
fn no_variable_is_on_the_command_line() {
    let text = r#"{"image": "x", "containerEnv": {"TOKEN": "secret", "KEY": "-----BEGIN\nsecret"}}"#;
    let args = run(text, None).unwrap();
    assert!(!args.iter().any(|arg| arg.contains("secret")), "{args:?}");
    assert!(args.contains(&"--env=KEY".to_owned()) && !args.contains(&"--env=TOKEN".to_owned()));
}

#[test]
fn variables_that_no_line_can_hold_are_inherited() {
    let env = [("A", "a b=c #"), ("B", ""), ("C", "1\n2"), ("D", "x\r"), ("#E", "x"), ("F", &"x".repeat(40_000))];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let variables = variables(&env);
    assert_eq!(variables.file, "A=a b=c #\nB=\n");
    assert_eq!(variables.inherited.keys().collect::<Vec<_>>(), ["#E", "C", "D", "F"]);
}

#[test]
fn a_mount_from_outside_is_refused() {
    for text in [
        r#"{"image": "x", "mounts": ["type=bind,source=/home/ann/.ssh,target=/s"]}"#,
        r#"{"image": "x", "runArgs": ["-v", "/etc:/e"]}"#,
        r#"{"image": "x", "workspaceMount": "type=bind,source=/,target=/host"}"#,
    ] {
        assert!(run(text, None).unwrap_err().detail.contains("outside the workspace"), "{text}");
    }
}

#[test]
fn the_engines_socket_is_noticed() {
    let socket = r#"{"image": "x", "mounts": ["type=bind,source=/var/run/docker.sock,target=/var/run/docker.sock"]}"#;
    assert!(needs_engine_socket(&run(socket, None).unwrap()));
    assert!(!needs_engine_socket(&run(r#"{"image": "x"}"#, None).unwrap()));
}

#[test]
fn a_build_has_its_context_file_and_arguments() {
    let build = Build {
        args: BTreeMap::from([("V".into(), "1 2".into())]),
        target: Some("dev".into()),
        cache_from: vec!["ghcr.io/a/b:latest".into()],
        options: vec!["--network=host".into()],
        ..Build::default()
    };
    let env = BTreeMap::from([("PIP_INDEX_URL".into(), "http://pip".into())]);
    let plan = BuildPlan {
        id: "P-1",
        dockerfile: "/w/D",
        context: "/w",
        build: &build,
        env: &env,
        arg_file: "/run/args",
        no_cache: false,
    };
    assert_eq!(
        build_args(&plan),
        [
            "build",
            "--format",
            "docker",
            "--tag",
            "localhost/garret-p-1",
            "--file",
            "/w/D",
            "--label=garret.environment=P-1",
            "--target",
            "dev",
            "--cache-from=ghcr.io/a/b",
            "--env=PIP_INDEX_URL=http://pip",
            "--unsetenv=PIP_INDEX_URL",
            "--build-arg-file=/run/args",
            "--network=host",
            "/w"
        ]
    );
    let args = build_args(&BuildPlan { no_cache: true, ..plan });
    assert!(args.contains(&"--no-cache".to_owned()) && !args.iter().any(|arg| arg.starts_with("--cache-from")));
}

#[test]
fn the_remote_user_comes_from_file_image_or_default() {
    for (text, label, expected) in [
        (r#"{"image": "x"}"#, None, "app"),
        (r#"{"image": "x", "containerUser": "c:g"}"#, None, "c"),
        (r#"{"image": "x", "runArgs": ["-u", "a", "--user=b"]}"#, None, "b"),
        (r#"{"image": "x", "runArgs": ["-u", "a"]}"#, Some(r#"{"remoteUser": "vscode"}"#), "vscode"),
        (r#"{"image": "x", "remoteUser": "me"}"#, Some(r#"{"remoteUser": "vscode"}"#), "me"),
    ] {
        let (resolved, image) = (resolved(text), image(label));
        assert_eq!(remote_user(&resolved, &merge(&resolved, &image).unwrap(), &image), expected, "{text}");
    }
    let resolved = resolved(r#"{"image": "x"}"#);
    let image = ImageRecord::default();
    assert_eq!(remote_user(&resolved, &merge(&resolved, &image).unwrap(), &image), "root");
}

#[test]
fn the_environment_of_a_remote_process() {
    let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let remote = BTreeMap::from([("B".into(), Some("remote".into())), ("C".into(), None)]);
    let env =
        remote_env(&map(&[("A", "1"), ("B", "1"), ("C", "1")]), &map(&[("A", "2")]), &remote, &map(&[("D", "4")]));
    assert_eq!(env, map(&[("A", "2"), ("B", "remote"), ("D", "4")]));
}
