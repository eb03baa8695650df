//! The engine's API socket, for containers that ask for `docker.sock`.

use std::fs::Permissions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;

use garret_api::{Code, Problem};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::sync::Mutex;

use super::mounts::ENGINE_SOCKET;

/// Allows only one start at a time.
static STARTING: Mutex<()> = Mutex::const_new(());

/// Passes the service the listening socket as file descriptor 3, with its own process id, as systemd does. No client
/// has to wait until the service listens.
const SERVE: &str = "export LISTEN_PID=$$ LISTEN_FDS=1; exec podman system service --time=0 3<&0 </dev/null";

/// Makes the engine serve its API at [`ENGINE_SOCKET`]. Does nothing if it already serves it.
pub(super) async fn serve() -> Result<(), Problem> {
    let _starting = STARTING.lock().await;
    if UnixStream::connect(ENGINE_SOCKET).await.is_ok() {
        return Ok(());
    }
    let failed =
        |error: std::io::Error| Problem::new(Code::Internal, format!("{ENGINE_SOCKET} cannot be served: {error}"));
    let listener = listen(Path::new(ENGINE_SOCKET)).map_err(failed)?;
    let mut service = Command::new("/bin/sh");
    crate::exec::allow_oom_kill(&mut service);
    let mut service = service
        .args(["-c", SERVE])
        .env_clear()
        .envs(super::podman::ENV)
        .stdin(Stdio::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Outside the agent's process group: the service must survive a restart of the agent.
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    tokio::spawn(async move {
        let ended = service.wait().await;
        tracing::warn!("the engine's API service has ended: {ended:?}");
    });
    Ok(())
}

fn listen(path: &Path) -> std::io::Result<OwnedFd> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // Every user of a container that has the socket may use it: mounting the socket is the permission.
    std::fs::set_permissions(path, Permissions::from_mode(0o666))?;
    Ok(listener.into())
}
