//! The daemon's life cycle: prepare the host, listen, reconcile, and end without ending the machines.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

use super::admission::Host;
use super::api;
use super::state::{Store, machines};
use super::{Daemon, deadlines, memory, notify, reconcile, resolvers, sweep};
use crate::accounts::NameService;
use crate::config::{self, Config};
use crate::host;

/// How long open calls may continue when the daemon ends.
const OPEN_CALLS_TIME: Duration = Duration::from_millis(500);
/// How much longer than its deadline a machine's stop may take: for work in progress when it begins, and for the power
/// cut.
const STOP_SLACK: Duration = Duration::from_secs(40);
/// How long the migration of an earlier state may take.
const MIGRATION_TIME: Duration = Duration::from_secs(600);

/// Runs the daemon on `socket` until it is asked to end. The machines continue to run.
///
/// # Errors
/// The host cannot be prepared, another daemon runs, or the state cannot be used.
pub(crate) async fn serve(config: Config, socket: PathBuf) -> anyhow::Result<()> {
    ignore_hangups()?;
    for (folder, mode) in [(&config.state, 0o700), (&config.run, 0o755)] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(folder)
            .with_context(|| format!("cannot make {}: `garret daemon` needs root", folder.display()))?;
    }
    // The locks come first, so that a second daemon ends here without touching anything. They last as long as this
    // process.
    let _locks = (lock(&config.state)?, lock(&config.run)?);
    let listener = listen(&socket).await?;
    let network = config.network(config::host_resolvers())?;
    let for_host = network.clone();
    tokio::task::spawn_blocking(move || host::setup_host(&for_host)).await??;
    let state = config.state.join("state.db");
    make_private(&state)?;
    // An earlier state is migrated.
    ask_for_time(MIGRATION_TIME);
    let store = Store::open(&state)?;
    let stop_deadline = Duration::from_secs(config.machine.stop_deadline_s);
    end_unknown(&config, &store, stop_deadline).await;
    let (daemon, poked) = Daemon::new(config, network, measure_host, store, NameService::default());
    notify::notify("READY=1")?;
    tracing::info!("garret {} listens on {}", env!("CARGO_PKG_VERSION"), socket.display());
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // A task of its own: it continues while the machines stop.
    tokio::spawn(memory::supervise(daemon.clone()));
    tokio::spawn(resolvers::follow(daemon.clone()));
    tokio::spawn(deadlines::enforce(daemon.clone()));
    let mut reconciled = pin!(reconcile::supervise(daemon.clone(), poked));
    tokio::select! {
        () = api::serve(listener, daemon.clone(), api::HEAD_TIME) => {}
        ended = &mut reconciled => return ended,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    notify::notify("STOPPING=1")?;
    if host_shuts_down().await {
        tracing::info!("the host shuts down: the machines stop");
        let closing = stop_deadline + STOP_SLACK;
        notify::ask_for_time(closing + OPEN_CALLS_TIME)?;
        tokio::select! {
            closed = tokio::time::timeout(closing, daemon.close()) => {
                if closed.is_err() {
                    tracing::error!("machines still run after {} s: the host ends them", closing.as_secs());
                }
            }
            ended = &mut reconciled => ended?,
        }
    } else {
        tracing::info!("the daemon ends; the machines continue");
    }
    daemon.streams.close();
    tokio::time::sleep(OPEN_CALLS_TIME).await;
    Ok(())
}

/// A closing terminal sends SIGHUP. It would end the daemon, and the service manager would count that as a requested
/// end.
fn ignore_hangups() -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::info!("SIGHUP is ignored: the configuration is read at the start only");
        }
    });
    Ok(())
}

/// Locks a folder for this daemon. The kernel releases the lock when the process ends, however it ends.
fn lock(folder: &Path) -> anyhow::Result<File> {
    let path = folder.join("lock");
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("another garret daemon uses {} already: stop it first (`systemctl stop garret`)", folder.display())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Ends machines that are not in the state, before their developers can request new ones.
async fn end_unknown(config: &Config, store: &Store, stop_deadline: Duration) {
    let known = match store.read(machines::all).await {
        Ok(rows) => rows.into_iter().map(|row| row.id).collect(),
        Err(error) => return tracing::error!("cannot look for machines that are not in the state: {error}"),
    };
    ask_for_time(stop_deadline + STOP_SLACK);
    sweep::sweep(&config.run, &known, stop_deadline).await;
}

fn ask_for_time(time: Duration) {
    if let Err(error) = notify::ask_for_time(time) {
        tracing::warn!("cannot ask the service manager for time: {error}");
    }
}

/// Makes the state's file readable only by root, whatever the folder's mode and the umask are: it holds developers'
/// variables. SQLite uses the same mode for its other files.
fn make_private(state: &Path) -> anyhow::Result<()> {
    let private = || {
        let file = fs::File::options().append(true).create(true).mode(0o600).open(state)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))
    };
    private().with_context(|| format!("cannot make {} private", state.display()))
}

/// Measures the host and applies the configuration's values.
fn measure_host(config: &Config) -> Host {
    let host = Host::measure();
    let reserve_mib = config.memory.reserve_mib.map_or(host.reserve_mib, u64::from);
    Host { reserve_mib, ..host }
}

/// Whether the service manager ends the whole host, not only this daemon.
async fn host_shuts_down() -> bool {
    let asked = tokio::process::Command::new("systemctl").arg("is-system-running").output().await;
    asked.is_ok_and(|output| output.stdout.starts_with(b"stopping"))
}

/// Listens where every user may connect: the peer's credentials decide what they may do.
async fn listen(socket: &Path) -> anyhow::Result<UnixListener> {
    if UnixStream::connect(socket).await.is_ok() {
        bail!("another garret daemon listens on {} already", socket.display());
    }
    if let Err(error) = fs::remove_file(socket)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("cannot remove the stale {}", socket.display()));
    }
    let listener = UnixListener::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_daemon_and_the_next_may_follow() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path()).unwrap();
        let error = lock(dir.path()).unwrap_err().to_string();
        assert!(error.starts_with("another garret daemon uses /") && !error.contains('\n'), "{error}");
        drop(first);
        lock(dir.path()).unwrap();
    }

    #[tokio::test]
    async fn a_second_daemon_ends_before_it_touches_anything() {
        let dir = tempfile::tempdir().unwrap();
        let _first = lock(dir.path()).unwrap();
        let config = Config { state: dir.path().into(), run: dir.path().join("run"), ..Config::default() };
        let error = serve(config, dir.path().join("garret.sock")).await.unwrap_err().to_string();
        assert!(error.starts_with("another garret daemon uses"), "{error}");
        assert!(!dir.path().join("garret.sock").exists() && !dir.path().join("state.db").exists());
    }

    #[test]
    fn the_state_and_the_files_beside_it_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state.db");
        fs::write(&state, "").unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o644)).unwrap();
        make_private(&state).unwrap();
        let _store = Store::open(&state).unwrap();
        let files: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
        assert!(files.len() > 1, "{files:?}");
        for file in files {
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
        }
    }
}
