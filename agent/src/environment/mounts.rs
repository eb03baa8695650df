//! Sources of bind mounts: translates paths of the developer's machine to paths of the guest.

use garret_api::{Code, Problem};
use garret_devcontainer::Mount;

/// The guest engine's own socket, which replaces `docker.sock`.
pub(super) const ENGINE_SOCKET: &str = "/run/podman/podman.sock";
/// The names that a devcontainer.json may use for the engine's socket.
const SOCKET_NAMES: [&str; 4] =
    ["/var/run/docker.sock", "/run/docker.sock", "/var/run/podman/podman.sock", "/run/podman/podman.sock"];

/// The location of a workspace, on the host and in the guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct WorkspacePaths<'a> {
    /// On the host, without a trailing slash.
    pub host: &'a str,
    pub guest: &'a str,
}

impl WorkspacePaths<'_> {
    /// A bind mount's source in the guest.
    ///
    /// # Errors
    /// The source is a path of the host outside the workspace.
    pub(super) fn source(&self, source: &str) -> Result<String, Problem> {
        if SOCKET_NAMES.contains(&source) {
            return Ok(ENGINE_SOCKET.to_owned());
        }
        let climbs = source.split('/').any(|part| part == "..");
        let inside = source.strip_prefix(self.host).filter(|rest| rest.is_empty() || rest.starts_with('/'));
        match inside {
            Some(rest) if !climbs => Ok(format!("{}{rest}", self.guest)),
            _ => Err(Problem::new(
                Code::Invalid,
                format!(
                    "mount source {source:?} is outside the workspace {:?}: move it inside, use a volume, or take the mount out",
                    self.host
                ),
            )),
        }
    }

    /// A mount as the guest's engine needs it.
    ///
    /// # Errors
    /// As [`source`](Self::source); also a bind mount without a source.
    pub(super) fn mount(&self, mount: &Mount) -> Result<Mount, Problem> {
        let mut mount = mount.clone();
        if mount.kind == "bind" {
            let Some(source) = &mount.source else {
                return Err(Problem::new(Code::Invalid, format!("the bind mount at {:?} has no source", mount.target)));
            };
            mount.source = Some(self.source(source)?);
        }
        Ok(mount)
    }

    /// `runArgs` with the sources of their mounts translated: `-v`, `--volume` and `--mount`, with `=` or as two words.
    ///
    /// # Errors
    /// As [`mount`](Self::mount).
    pub(super) fn run_args(&self, args: &[String]) -> Result<Vec<String>, Problem> {
        let mut out = Vec::with_capacity(args.len());
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let (name, value) = match arg.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (arg.as_str(), None),
            };
            let translate: fn(&Self, &str) -> Result<String, Problem> = match name {
                "-v" | "--volume" => Self::volume_argument,
                "--mount" => Self::mount_argument,
                _ => {
                    out.push(arg.clone());
                    continue;
                }
            };
            match value {
                Some(value) => out.push(format!("{name}={}", translate(self, value)?)),
                None => {
                    out.push(arg.clone());
                    out.extend(args.next().map(|value| translate(self, value)).transpose()?);
                }
            }
        }
        Ok(out)
    }

    /// `source:target[:options]`; a source without a leading slash is a volume.
    fn volume_argument(&self, text: &str) -> Result<String, Problem> {
        match text.split_once(':') {
            Some((source, rest)) if source.starts_with('/') => Ok(format!("{}:{rest}", self.source(source)?)),
            _ => Ok(text.to_owned()),
        }
    }

    fn mount_argument(&self, text: &str) -> Result<String, Problem> {
        let mount = Mount::parse(text).map_err(|message| Problem::new(Code::Invalid, format!("runArgs: {message}")))?;
        Ok(self.mount(&mount)?.to_argument())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKSPACE_PATHS: WorkspacePaths<'_> =
        WorkspacePaths { host: "/home/ann/my project", guest: "/workspaces/p-1" };

    #[test]
    fn sources_inside_are_found_in_the_share() {
        assert_eq!(WORKSPACE_PATHS.source("/home/ann/my project").unwrap(), "/workspaces/p-1");
        assert_eq!(WORKSPACE_PATHS.source("/home/ann/my project/a/b").unwrap(), "/workspaces/p-1/a/b");
        assert_eq!(WORKSPACE_PATHS.source("/var/run/docker.sock").unwrap(), ENGINE_SOCKET);
    }

    #[test]
    fn sources_outside_are_one_clear_error() {
        for source in ["/home/ann/.ssh", "/home/ann/my project 2", "/home/ann/my project/../x", "relative", ""] {
            let message = WORKSPACE_PATHS.source(source).unwrap_err().detail;
            assert!(message.contains("outside the workspace") && !message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn only_bind_mounts_have_paths() {
        let mount = |text: &str| WORKSPACE_PATHS.mount(&Mount::parse(text).unwrap()).map(|mount| mount.to_argument());
        assert_eq!(mount("type=volume,source=cache,target=/c").unwrap(), "type=volume,source=cache,target=/c");
        assert_eq!(
            mount("type=bind,source=/home/ann/my project/x,target=/x,readonly").unwrap(),
            "type=bind,source=/workspaces/p-1/x,target=/x,readonly"
        );
        assert!(mount("type=bind,target=/x").is_err());
    }

    #[test]
    fn run_args_are_translated_too() {
        let args = [
            "--network=host",
            "-v",
            "/home/ann/my project/a:/a:ro",
            "--volume=name:/n",
            "--mount",
            "type=bind,src=/home/ann/my project,dst=/b",
            "-v",
        ]
        .map(str::to_owned);
        assert_eq!(
            WORKSPACE_PATHS.run_args(&args).unwrap(),
            [
                "--network=host",
                "-v",
                "/workspaces/p-1/a:/a:ro",
                "--volume=name:/n",
                "--mount",
                "type=bind,source=/workspaces/p-1,target=/b",
                "-v"
            ]
        );
        assert!(WORKSPACE_PATHS.run_args(&["-v".into(), "/etc:/e".into()]).is_err());
    }
}
