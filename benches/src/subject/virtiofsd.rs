//! The file server beside a VMM without one: the daemon of the crate that garret uses as a library. It has the same
//! caching and no sandbox, as garret's server has none when it is started without its jail.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock;
use crate::process::{Process, Program};

/// It listens almost at once. This allows for an emulated host.
const UP: Duration = Duration::from_secs(20);

/// Starts one for `share`, and returns the socket that it listens on.
///
/// # Errors
/// It cannot be started.
pub(super) fn start(program: &Path, share: &Path, folder: &Path) -> anyhow::Result<(Process, PathBuf)> {
    let socket = folder.join("virtiofsd.sock");
    let mut process = Program::new(program, arguments(share, &socket)).start(folder, None)?;
    clock::poll("virtiofsd", UP, Duration::from_millis(5), || {
        let there = socket.exists().then_some(());
        if there.is_none() {
            process.check()?;
        }
        Ok(there)
    })?;
    Ok((process, socket))
}

fn arguments(share: &Path, socket: &Path) -> Vec<OsString> {
    let with = |name: &str, path: &Path| {
        let mut argument = OsString::from(name);
        argument.push(path);
        argument
    };
    let mut arguments = vec![with("--socket-path=", socket), with("--shared-dir=", share)];
    let fixed = ["--cache=auto", "--sandbox=none", "--announce-submounts", "--inode-file-handles=never"];
    arguments.extend(fixed.map(OsString::from));
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_cannot_start_is_an_error_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let error = start(Path::new("/bin/false"), Path::new("/tmp"), folder.path()).err().unwrap().to_string();
        assert!(error.contains("false ended"), "{error}");
        assert_eq!(arguments(Path::new("/s"), Path::new("/v"))[..2], ["--socket-path=/v", "--shared-dir=/s"]);
    }
}
