//! Builds the specification of a process in the guest from a request.

use std::collections::BTreeMap;
use std::path::PathBuf;

use garret_api::agent::ExecRequest;
use garret_api::{Code, Problem};

use super::{Place, ProcessSpec};
use crate::users::{User, Users};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The process for `request` in the guest, with the environment of a login; `host_env` holds the host's additions
/// (proxies, certificates). Without a command it is a login shell.
pub(crate) fn process(
    users: &Users,
    request: ExecRequest,
    host_env: &BTreeMap<String, String>,
) -> Result<ProcessSpec, Problem> {
    let wanted = request.user.as_deref().unwrap_or("root");
    let user = users
        .find(wanted)
        .ok_or_else(|| Problem::new(Code::NotFound, format!("there is no user {wanted:?} in the machine")))?;
    let mut env = login_env(&user, request.terminal.is_some());
    env.extend(host_env.clone());
    env.extend(request.env);
    let args = if request.command.is_empty() {
        vec![user.shell.to_string_lossy().into_owned(), "-l".into()]
    } else {
        request.command
    };
    let cwd = request.cwd.map_or(user.home, PathBuf::from);
    Ok(ProcessSpec { place: Place::Guest, args, env, cwd, credentials: user.credentials, terminal: request.terminal })
}

fn login_env(user: &User, terminal: bool) -> BTreeMap<String, String> {
    let mut env = BTreeMap::from([
        ("HOME".into(), user.home.to_string_lossy().into_owned()),
        ("LANG".into(), "C.UTF-8".into()),
        ("LOGNAME".into(), user.name.clone()),
        ("PATH".into(), PATH.into()),
        ("SHELL".into(), user.shell.to_string_lossy().into_owned()),
        ("USER".into(), user.name.clone()),
    ]);
    if terminal {
        env.insert("TERM".into(), "xterm-256color".into());
    }
    env
}

#[cfg(test)]
mod tests {
    use garret_api::stream::WindowSize;

    use super::*;

    fn users() -> Users {
        Users::parse("root:x:0:0::/root:/bin/bash\nann:x:1001:1001::/home/ann:\n", "dev:x:50:ann\n")
    }

    #[test]
    fn no_command_is_roots_login_shell_at_home() {
        let terminal = Some(WindowSize { rows: 24, columns: 80 });
        let spec = process(&users(), ExecRequest { terminal, ..Default::default() }, &BTreeMap::new()).unwrap();
        assert_eq!(spec.args, ["/bin/bash", "-l"]);
        assert_eq!((spec.cwd.to_str(), spec.env["TERM"].as_str()), (Some("/root"), "xterm-256color"));
    }

    #[test]
    fn the_request_wins_over_the_host_and_the_host_over_the_login() {
        let host = BTreeMap::from([("LANG".into(), "de".into()), ("http_proxy".into(), "p".into())]);
        let env = BTreeMap::from([("http_proxy".into(), "mine".into())]);
        let request = ExecRequest { command: vec!["env".into()], user: Some("ann".into()), env, ..Default::default() };
        let spec = process(&users(), request, &host).unwrap();
        assert_eq!((spec.env["LANG"].as_str(), spec.env["http_proxy"].as_str()), ("de", "mine"));
        assert_eq!((spec.env["USER"].as_str(), spec.env.get("TERM")), ("ann", None));
        assert_eq!((spec.credentials.uid, spec.credentials.groups.as_slice()), (1001, &[50][..]));
    }

    #[test]
    fn an_unknown_user_is_named() {
        let request = ExecRequest { user: Some("bob".into()), ..Default::default() };
        let problem = process(&users(), request, &BTreeMap::new()).unwrap_err();
        assert_eq!(problem.detail, "there is no user \"bob\" in the machine");
    }
}
