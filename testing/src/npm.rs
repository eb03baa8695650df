//! Programs of npm that tests run. node and npm come with the project's setup script.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Installs packages, as `name@version`, into the user's cache unless they are there. Returns the folder with `node_modules`.
/// `name` and the versions together name the folder.
///
/// # Panics
/// They cannot be installed.
pub fn install(name: &str, packages: &[&str]) -> PathBuf {
    let versions: Vec<_> = packages.iter().filter_map(|package| package.rsplit('@').next()).collect();
    let folder = cache().join(format!("{name}-{}", versions.join("-")));
    fs::create_dir_all(&folder).expect("the cache can be written");
    // Other tests may install the same at this moment.
    let lock = File::create(folder.join("lock")).expect("the cache can be written");
    lock.lock().expect("the file can be locked");
    let done = folder.join("installed");
    if !done.exists() {
        let install = ["install", "--no-audit", "--no-fund", "--prefix"];
        let status = Command::new("npm").args(install).arg(&folder).args(packages).status();
        let status = status.expect("npm is installed: run scripts/setup.sh");
        assert!(status.success(), "npm could not install {packages:?}");
        File::create(done).expect("the cache can be written");
    }
    folder
}

fn cache() -> PathBuf {
    let home = || Path::new(&env::var_os("HOME").expect("HOME is set")).join(".cache");
    env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("garret")
}
