//! Processes in a devcontainer: their user and their environment.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use garret_api::agent::ExecRequest;
use garret_api::{Code, Problem};
use garret_devcontainer::UserEnvProbe;

use super::plan;
use super::record::ContainerRecord;
use super::runtime::root_of;
use crate::blocking::Blocking;
use crate::exec::{self, Place, ProcessSpec};
use crate::users::{User, Users};

/// How long a user's shell may take to start and print its environment. After this time the agent continues without it,
/// because the shell may wait for input that never comes.
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);
/// The most bytes that a shell may print.
const PROBE_MAX: usize = 1 << 20;
/// Surrounds the environment in the probe's output, because a shell's startup files may print text before and after it.
const MARK: &str = "\u{1}garret-environment\u{1}";
/// Variables that describe only the probing shell.
const SHELL_VARIABLES: [&str; 4] = ["OLDPWD", "PWD", "SHLVL", "_"];

/// Reading user files of a container or an image: a file system that is mounted there may never respond.
pub(super) static USER_FILES: Blocking =
    Blocking::new("reading the container's user files", 16, Duration::from_secs(10));

/// The users of a running container; `pid` is the guest's process id of its first process.
pub(super) async fn users(pid: i32) -> Result<Users, Problem> {
    USER_FILES
        .run(move || Users::load(&root_of(pid)))
        .await?
        .map_err(|error| Problem::new(Code::Internal, format!("the container's user files cannot be read: {error}")))
}

/// One user of a container.
pub(super) fn user(users: &Users, name: &str) -> Result<User, Problem> {
    let unknown = || {
        let message =
            format!("the container has no user {name:?}: name one it has as remoteUser, or add it in the image");
        Problem::new(Code::NotFound, message)
    };
    users.find(name).ok_or_else(unknown)
}

/// The process for `request`. Without a command it is the user's login shell.
pub(super) fn process(
    container: &ContainerRecord,
    users: &Users,
    request: ExecRequest,
) -> Result<ProcessSpec, Problem> {
    let name = request.user.as_deref().unwrap_or(&container.remote_user);
    let user = user(users, name)?;
    let none = BTreeMap::new();
    // The probed variables are those of the remote user, not of another user.
    let probed =
        container.probed.as_ref().filter(|_| name == container.remote_user).map_or(&none, |probed| &probed.env);
    let mut base = container.env.clone();
    base.insert("HOME".into(), user.home.to_string_lossy().into_owned());
    if request.terminal.is_some() {
        base.insert("TERM".into(), "xterm-256color".into());
    }
    let env = plan::remote_env(&base, probed, &container.remote_env, &request.env);
    let args = if request.command.is_empty() {
        vec![user.shell.to_string_lossy().into_owned(), "-l".into()]
    } else {
        request.command
    };
    let cwd = PathBuf::from(request.cwd.unwrap_or_else(|| container.workspace_folder.clone()));
    let place = Place::Container { id: container.id.clone() };
    Ok(ProcessSpec { place, args, env, cwd, credentials: user.credentials, terminal: request.terminal })
}

/// Reads the environment that the remote user's shell sets. Returns `None`, and reports the reason through `report`, if
/// the shell did not print it.
pub(super) async fn probe(
    container: &ContainerRecord,
    users: &Users,
    kind: UserEnvProbe,
    report: impl Fn(&str),
) -> Result<Option<BTreeMap<String, String>>, Problem> {
    let flags = match kind {
        UserEnvProbe::None => return Ok(Some(BTreeMap::new())),
        UserEnvProbe::LoginShell => "-lc",
        UserEnvProbe::LoginInteractiveShell => "-lic",
        UserEnvProbe::InteractiveShell => "-ic",
    };
    let user = user(users, &container.remote_user)?;
    let root = user.credentials.uid == 0;
    let script = format!("printf %s '{MARK}'; cat /proc/self/environ; printf %s '{MARK}'");
    let command = vec![user.shell.to_string_lossy().into_owned(), flags.into(), script];
    let unprobed = ContainerRecord { probed: None, remote_env: BTreeMap::new(), ..container.clone() };
    let cwd = Some("/".to_owned());
    let spec = process(&unprobed, users, ExecRequest { command, cwd, ..ExecRequest::default() })?;
    let mut output = Vec::new();
    let running = exec::run(&spec, |bytes| {
        if output.len() < PROBE_MAX {
            output.extend_from_slice(bytes);
        }
    });
    match tokio::time::timeout(PROBE_TIMEOUT, running).await {
        Err(_) => {
            let shell = user.shell.display();
            report(&format!(
                "{shell} took longer than {} s to start: its environment is not used",
                PROBE_TIMEOUT.as_secs()
            ));
            Ok(None)
        }
        Ok(Err(problem)) => {
            report(&format!("{}: its environment is not used", problem.detail));
            Ok(None)
        }
        Ok(Ok(_)) => Ok(parse(&String::from_utf8_lossy(&output), container.env.get("PATH").map(String::as_str), root)),
    }
}

/// The variables between the marks.
fn parse(output: &str, container_path: Option<&str>, root: bool) -> Option<BTreeMap<String, String>> {
    let (_, rest) = output.split_once(MARK)?;
    let (text, _) = rest.split_once(MARK)?;
    let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
    let mut env: BTreeMap<String, String> = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    env.retain(|name, _| !SHELL_VARIABLES.contains(&name.as_str()));
    if let (Some(probed), Some(container)) = (env.get_mut("PATH"), container_path) {
        *probed = merged_path(probed, container, root);
    }
    Some(env)
}

/// The shell's `PATH` plus the folders that only the container's `PATH` has, each inserted after its predecessor there.
/// A login shell's startup files often reset the image's value. `sbin` folders are inserted for root only.
fn merged_path(probed: &str, container: &str, root: bool) -> String {
    let mut path: Vec<&str> = probed.split(':').collect();
    let mut insert_at = 0;
    for folder in container.split(':') {
        match path.iter().position(|have| *have == folder) {
            Some(index) => insert_at = index + 1,
            None if root || !folder.split('/').any(|part| part == "sbin") => {
                path.insert(insert_at, folder);
                insert_at += 1;
            }
            None => {}
        }
    }
    path.join(":")
}

#[cfg(test)]
mod tests {
    use garret_api::stream::WindowSize;

    use super::super::record::Probed;
    use super::*;

    fn container() -> ContainerRecord {
        let map =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        ContainerRecord {
            id: "ab".into(),
            remote_user: "vscode".into(),
            workspace_folder: "/workspaces/p".into(),
            env: map(&[("PATH", "/bin"), ("A", "container")]),
            remote_env: BTreeMap::from([("B".into(), Some("remote".into()))]),
            probed: Some(Probed { env: map(&[("A", "probed"), ("B", "probed")]), ..Probed::default() }),
            ..ContainerRecord::default()
        }
    }

    fn users() -> Users {
        Users::parse("root:x:0:0::/root:/bin/bash\nvscode:x:1000:1000::/home/vscode:/bin/zsh\n", "sudo:x:27:vscode\n")
    }

    #[test]
    fn a_command_runs_as_the_remote_user_with_all_environments() {
        let request = ExecRequest { command: vec!["ls".into()], ..ExecRequest::default() };
        let spec = process(&container(), &users(), request).unwrap();
        assert_eq!((spec.credentials.uid, spec.credentials.groups.as_slice()), (1000, &[27][..]));
        assert_eq!(spec.cwd.to_str(), Some("/workspaces/p"));
        let env: Vec<_> = spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(env, ["A=probed", "B=remote", "HOME=/home/vscode", "PATH=/bin"]);
    }

    #[test]
    fn a_shell_of_another_user() {
        let terminal = Some(WindowSize { rows: 1, columns: 1 });
        let request = ExecRequest { user: Some("root".into()), terminal, ..ExecRequest::default() };
        let spec = process(&container(), &users(), request).unwrap();
        assert_eq!(spec.args, ["/bin/bash", "-l"]);
        assert_eq!((spec.env["A"].as_str(), spec.env["TERM"].as_str()), ("container", "xterm-256color"));
        let request = ExecRequest { user: Some("bob".into()), ..ExecRequest::default() };
        assert!(process(&container(), &users(), request).unwrap_err().detail.contains("no user \"bob\""));
    }

    #[test]
    fn the_environment_is_between_the_marks() {
        let output = format!("motd\n{MARK}A=1=2\0PWD=/\0B=\0_=x\0PATH=/home/me/bin:/bin{MARK}bye");
        let env = parse(&output, Some("/opt/x/bin:/bin:/sbin"), false).unwrap();
        let env: Vec<_> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(env, ["A=1=2", "B=", "PATH=/opt/x/bin:/home/me/bin:/bin"]);
        assert_eq!(parse("no marks", None, false), None);
        assert_eq!(parse(MARK, None, false), None);
    }

    #[test]
    fn paths_are_merged() {
        for (probed, container, root, expected) in [
            ("/a:/b", "/a:/b", false, "/a:/b"),
            ("/usr/bin:/bin", "/opt/bin:/usr/bin:/usr/x:/bin", false, "/opt/bin:/usr/bin:/usr/x:/bin"),
            ("/usr/bin", "/usr/sbin:/usr/bin", false, "/usr/bin"),
            ("/usr/bin", "/usr/sbin:/usr/bin", true, "/usr/sbin:/usr/bin"),
        ] {
            assert_eq!(merged_path(probed, container, root), expected);
        }
    }
}
