//! A daemon for unit tests: its folders are in a temporary folder, and no machine can start.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::Daemon;
use super::admission::Host;
use super::state::Store;
use crate::accounts::NameService;
use crate::config::Config;

/// A daemon with its state in `folder`, and a receiver of the uids that it pokes.
pub fn daemon(folder: &Path, names: NameService) -> (Arc<Daemon>, mpsc::UnboundedReceiver<u32>) {
    daemon_with(folder, names, |_| {})
}

/// The same with changes to its configuration.
pub fn daemon_with(
    folder: &Path,
    names: NameService,
    change: impl FnOnce(&mut Config),
) -> (Arc<Daemon>, mpsc::UnboundedReceiver<u32>) {
    let mut config = Config { state: folder.into(), run: folder.into(), ..Config::default() };
    // A test never starts a machine on the host that it runs on.
    config.artifacts.data_template = folder.join("no-template");
    // Long enough for a second try.
    config.machine.stop_deadline_s = 3;
    change(&mut config);
    let network = config.network(Vec::new()).unwrap();
    let host = |_: &Config| Host { cpus: 2, memory_mib: 4000, swap_mib: 0, reserve_mib: 256 };
    let store = Store::open(&folder.join("state.db")).unwrap();
    Daemon::new(config, network, host, store, names)
}
